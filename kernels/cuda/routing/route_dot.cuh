#pragma once

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/vector_io.cuh"
#include "kernels/cuda/device/warp.cuh"
#include "kernels/cuda/routing/route_choice.cuh"

namespace hadal::cuda {

// Router logits of few tokens, in FP32. What fits of the gate is in registers before the wait: it
// does not depend on earlier kernels.

inline constexpr int kDotThreads = 256;
inline constexpr int kDotWarps = kDotThreads / 32;

// Brings a row's part from `from` on into the L2 cache.
__device__ __forceinline__ void PrefetchRow(const float* row, int64_t from, int64_t count) {
  for (int64_t i = from + threadIdx.x * 32; i < count; i += kDotThreads * 32) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(row + i));
  }
}

template <typename Act, int kVec>
__device__ __forceinline__ void AddProducts(const Pack<float, kVec>& weights,
                                            const Pack<Act, kVec>& inputs, float& sum) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum += weights.at[i] * ToFloat(inputs.at[i]);
}

// One block per expert and kTokens tokens: the gate is read by as many blocks as there are experts.
template <typename Act, int kVec, int kTokens>
__global__ void __launch_bounds__(kDotThreads) DotKernel(RouteParams p, float* logits) {
  using Weights = Pack<float, kVec>;
  using Inputs = Pack<Act, kVec>;
  constexpr int kHeld = 8, kStep = kDotThreads * kVec;
  __shared__ float partial[kTokens][kDotWarps];
  const int expert = static_cast<int>(blockIdx.x);
  const int first = static_cast<int>(blockIdx.y) * kTokens;
  const int count = min(kTokens, p.tokens - first);
  const float* gate = p.gate + expert * p.dim;
  const Act* x = static_cast<const Act*>(p.x) + first * p.dim;
  const int64_t start = threadIdx.x * kVec;
  Weights held[kHeld] = {};
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int64_t k = start + i * kStep;
    if (k < p.dim) held[i] = *reinterpret_cast<const Weights*>(gate + k);
  }
  PrefetchRow(gate, kHeld * kStep, p.dim);
  WaitForPrevious();
  AllowNext();
  Inputs inputs[kHeld][kTokens] = {};
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int64_t k = start + i * kStep;
    if (k >= p.dim) continue;
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      inputs[i][t] = *reinterpret_cast<const Inputs*>(x + min(t, count - 1) * p.dim + k);
    }
  }
  float sum[kTokens] = {};
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) AddProducts(held[i], inputs[i][t], sum[t]);
  }
  for (int64_t k = start + kHeld * kStep; k < p.dim; k += kStep) {
    const auto weights = *reinterpret_cast<const Weights*>(gate + k);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const Act* at = x + min(t, count - 1) * p.dim + k;
      AddProducts(weights, *reinterpret_cast<const Inputs*>(at), sum[t]);
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    sum[t] = WarpSum(sum[t]);
    if (threadIdx.x % 32 == 0) partial[t][threadIdx.x / 32] = sum[t];
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < count) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < kDotWarps; ++w) total += partial[threadIdx.x][w];
    logits[(first + static_cast<int64_t>(threadIdx.x)) * p.experts + expert] = total;
  }
}

}  // namespace hadal::cuda
