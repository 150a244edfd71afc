#pragma once

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/moe_mma.cuh"
#include "kernels/cuda/route_choice.cuh"

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

// A token by a cluster of kDotCluster blocks: warp w of block r makes the logit of expert
// r * kDotWarps + w, and one more warp of the first block chooses.
inline constexpr int kDotCluster = 8;
inline constexpr int kClusterThreads = kDotThreads + 32;
inline constexpr int kClusterExperts = kDotCluster * kDotWarps;  // at most
inline constexpr int kClusterDim = 2048;

// To the first block of the cluster, counted by its barrier.
__device__ __forceinline__ void SendToFirst(float* to, uint64_t* barrier, float v) {
  asm volatile(
      "{\n.reg .u32 to, at;\n"
      "mapa.shared::cluster.u32 to, %0, 0;\nmapa.shared::cluster.u32 at, %1, 0;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [to], %2, [at];\n}\n" ::"r"(
          SharedAddress(to)),
      "r"(SharedAddress(barrier)), "f"(v)
      : "memory");
}

// The logit of one expert, in all lanes.
__device__ __forceinline__ float ClusterLogit(const float* gate, const bf16* x) {
  constexpr int kSteps = kClusterDim / 256;
  const int lane = threadIdx.x % 32;
  Pack<float, 4> weights[kSteps][2];
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const auto* at = reinterpret_cast<const Pack<float, 4>*>(gate + i * 256 + lane * 8);
    weights[i][0] = at[0], weights[i][1] = at[1];
  }
  AwaitCluster();  // the first block's barrier is there
  WaitForPrevious();
  AllowNext();
  Pack<bf16, 8> inputs[kSteps];
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    inputs[i] = *reinterpret_cast<const Pack<bf16, 8>*>(x + i * 256 + lane * 8);
  }
  float sums[4] = {};
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      sums[j % 4] += weights[i][j / 4].at[j % 4] * ToFloat(inputs[i].at[j]);
    }
  }
  return WarpSum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

__global__ void __launch_bounds__(kClusterThreads, 1) ClusterKernel(RouteParams p) {
#if __CUDA_ARCH__ >= 900
  constexpr int kPer = kClusterExperts / 32;
  __shared__ __align__(16) float logits[kClusterExperts], scratch[kRouteScratch * kClusterExperts];
  __shared__ uint64_t arrived;
  const int warp = threadIdx.x / 32, expert = static_cast<int>(blockIdx.x) * kDotWarps + warp;
  const int64_t token = blockIdx.y;
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    BarrierInit(SharedAddress(&arrived), 1);
    FenceBarrierInit();
    ArriveExpecting(SharedAddress(&arrived), kClusterExperts * 4);
  }
  ArriveCluster();
  if (warp < kDotWarps) {
    const float logit = ClusterLogit(p.gate + min(expert, p.experts - 1) * p.dim,
                                     static_cast<const bf16*>(p.x) + token * p.dim);
    if (threadIdx.x % 32 == 0) SendToFirst(logits + expert, &arrived, logit);
    return;
  }
  AwaitCluster();
  if (blockIdx.x > 0) return;
  Choose<1, kPer>(p, token, scratch, [&](float(&v)[kPer]) {
    WaitForPrevious();
    AwaitBarrier(SharedAddress(&arrived), 0);
    LoadLane<false, kPer>(logits, kClusterExperts, v);
  });
#endif
}

}  // namespace hadal::cuda
