#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/cuda/packed_weight.h"

namespace hadal::cuda {

using bf16 = __nv_bfloat16;
using fp8 = __nv_fp8_e4m3;

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float ToFloat(fp8 x) { return static_cast<float>(x); }

template <typename T>
__device__ __forceinline__ T FromFloat(float x);
template <>
__device__ __forceinline__ float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 FromFloat<bf16>(float x) {
  return __float2bfloat16(x);
}

// Within a few units in the last place, in six instructions: a division that is right for all operands
// branches, and the values of a thread then wait for each other; exp and reciprocal that are right for
// denormals scale their operands.
__device__ __forceinline__ float SiluMul(float gate, float up) {
  float exp, sigmoid;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(exp) : "f"(gate * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(sigmoid) : "f"(1.0f + exp));
  return gate * sigmoid * up;
}

// Returns when all earlier kernels of the stream have completed and their writes are visible.
__device__ __forceinline__ void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// Lets the next kernel's blocks start where there is room; they still wait for this kernel's end.
__device__ __forceinline__ void AllowNext() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

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

// A few consecutive elements with one access.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T at[kCount];
};

}  // namespace hadal::cuda
