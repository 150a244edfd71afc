#pragma once

#include <algorithm>
#include <cstdint>

#include "common/step_plan.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/vector_kernels.h"

namespace hadal {

static_assert(kScoreTile == kBlockSize);

const VectorKernels& VectorKernelsFor(CpuIsa isa);

// n rounded up to whole vectors.
inline int64_t PaddedFloats(int64_t n, const VectorKernels& kernels) {
  return (n + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
}
// A stride for rows of n floats: whole cache lines, an odd number of them, so that equal columns of
// consecutive rows do not compete for the same cache set.
inline int64_t PaddedStride(int64_t n) { return ((n + 15) / 16 | 1) * 16; }

// Rows per chunk of a parallel loop, so that a chunk is worth waking a thread.
inline int64_t RowGrain(int64_t elements_per_row) {
  return std::max<int64_t>(16 * 1024 / std::max<int64_t>(elements_per_row, 1), 1);
}

}  // namespace hadal
