#pragma once

#include <cstdint>

namespace hadal {

// out[2i] + j out[2i + 1] = (x[2i] + j x[2i + 1]) * (cos_i + j sin_i); out may be x.
// cos_sin: [dim / 2, 2], the row of one position.
inline void RotatePairs(const float* x, const float* cos_sin, int dim, float* out) {
  for (int i = 0; i < dim; i += 2) {
    const float a = x[i], b = x[i + 1], c = cos_sin[i], s = cos_sin[i + 1];
    out[i] = a * c - b * s;
    out[i + 1] = a * s + b * c;
  }
}

}  // namespace hadal
