#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace hadal::testing {

inline bool SameBits(const float* a, const float* b, int64_t n) {
  return std::memcmp(a, b, static_cast<size_t>(n) * sizeof(float)) == 0;
}
inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && SameBits(a.data(), b.data(), static_cast<int64_t>(a.size()));
}

// Rows [first, first + rows) of a matrix with rows of `width`.
inline std::vector<float> Rows(const std::vector<float>& x, int64_t width, int64_t first,
                               int64_t rows) {
  return {x.begin() + first * width, x.begin() + (first + rows) * width};
}

}  // namespace hadal::testing
