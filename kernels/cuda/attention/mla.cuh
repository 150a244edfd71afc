#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "common/step_plan.h"
#include "kernels/cuda/attention/mla_paths.h"

// What the files of the attention family share. Softmax runs in base 2 throughout: scores are
// multiplied by scale * log2(e), a part of a softmax is (o, m, l) with o = sum of 2^(s - m) v, not
// divided by l = sum of 2^(s - m). m = -inf and l = 0 where no key was seen.

namespace hadal::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

// 2^(x - m), 0 where nothing was seen (m = -inf).
__device__ inline float ExpDiff(float x, float m) { return m == -INFINITY ? 0.0f : exp2f(x - m); }

// Row of the latent cache that holds `position` of the sequence of `row`.
__device__ inline int64_t CacheRow(const int32_t* block_tables, const AttentionRow& row,
                                   int position) {
  const int64_t block = block_tables[row.first_block + position / kBlockSize];
  return block * kBlockSize + position % kBlockSize;
}

}  // namespace hadal::cuda
