#pragma once

#include <cstdint>

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/weights/packed_weight.h"

namespace hadal::cuda {

// What a kernel needs of a CudaPackedWeight.
struct WeightView {
  const void* data = nullptr;  // [count][n][stride]
  int64_t n = 0;
  int64_t k = 0;
  int64_t stride = 0;
  const float* scale = nullptr;  // [count][scale_n][k_blocks], FP8 only
  int64_t scale_n = 0;
  int64_t k_blocks = 0;
  int scale_rows = 1;
  int k_lead = 0;

  template <typename W>
  __device__ __forceinline__ const W* matrix(int i) const {
    return static_cast<const W*>(data) + i * n * stride;
  }
  __device__ __forceinline__ const float* scales(int i, int row) const {
    const int block = scale_rows == 1 ? row : row / 128;  // no division by a variable
    return scale + (int64_t{i} * scale_n + block) * k_blocks;
  }
};

inline WeightView ViewOf(const PackedWeight* packed) {
  const auto* w = static_cast<const CudaPackedWeight*>(packed);
  if (w == nullptr) return {};
  return {w->data,    w->n,        w->k,          w->stride, w->scale,
          w->scale_n, w->k_blocks, w->scale_rows, w->k_lead};
}

// Element k of a row of matrix i, in FP32. `row` points to the row, `scales` to its scales.
template <typename W>
__device__ __forceinline__ float WeightAt(const W* row, const float* scales, int k_lead,
                                          int64_t k) {
  if constexpr (sizeof(W) == 1) {
    return ToFloat(row[k]) * __ldg(scales + (k + k_lead) / 128);
  } else {
    return ToFloat(row[k]);
  }
}

}  // namespace hadal::cuda
