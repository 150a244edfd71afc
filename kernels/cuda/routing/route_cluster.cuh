#pragma once

#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/device/vector_io.cuh"
#include "kernels/cuda/device/warp.cuh"
#include "kernels/cuda/routing/route_choice.cuh"
#include "kernels/cuda/routing/route_dot.cuh"

namespace hadal::cuda {

// A token by a cluster of kDotCluster blocks: warp w of block r makes the logit of expert
// r * kDotWarps + w, and one more warp of the first block chooses. The norm before the router,
// where it is part of the kernel, is made by every block for itself; each stores a part of it.
inline constexpr int kDotCluster = 8;
inline constexpr int kClusterThreads = kDotThreads + 32;
inline constexpr int kClusterExperts = kDotCluster * kDotWarps;  // at most
inline constexpr int kClusterDim = kDotThreads * kVector;

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

// Of the warps that make logits.
__device__ __forceinline__ void SyncDots() {
  asm volatile("bar.sync 1, %0;" ::"n"(kDotThreads) : "memory");
}

// Inputs that lie there.
struct StoredRow {
  const bf16* x;

  __device__ explicit StoredRow(const RouteParams& p)
      : x(static_cast<const bf16*>(p.x) + int64_t{blockIdx.y} * p.dim) {}
  __device__ __forceinline__ const bf16* Ready() { return x; }
};

// Inputs that a norm makes: p of the norm, as NormVectorKernel in norm.cu, bit for bit.
struct NormedRow {
  const RmsNormParams& p;
  bf16* row;    // shared, kClusterDim
  float* sums;  // shared, kDotWarps
  float weight[kVector];

  // By the warps that make logits; before the wait.
  __device__ __forceinline__ NormedRow(const RmsNormParams& norm, bf16* to, float* warp_sums)
      : p(norm), row(to), sums(warp_sums) {
    LoadVector(p.weight + threadIdx.x * kVector, weight);
  }

  __device__ __forceinline__ const bf16* Ready() {
    const int64_t column = threadIdx.x * kVector, at = blockIdx.y * p.x_stride + column;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool stores = warp % kDotCluster == static_cast<int>(blockIdx.x);
    float x[kVector];
    LoadVector(static_cast<const float*>(p.from == nullptr ? p.residual : p.from) + at, x);
    if (p.delta != nullptr) {
      float d[kVector];
      LoadVector(static_cast<const bf16*>(p.delta) + blockIdx.y * p.dim + column, d);
#pragma unroll
      for (int j = 0; j < kVector; ++j) x[j] += d[j];
    }
    if (stores && p.from != nullptr) StoreVector(static_cast<float*>(p.residual) + at, x);
    float square = 0;
#pragma unroll
    for (int j = 0; j < kVector; ++j) square += x[j] * x[j];
    square = WarpSum(square);
    if (lane == 0) sums[warp] = square;
    SyncDots();
    square = sums[lane % kDotWarps];
#pragma unroll
    for (int d = kDotWarps / 2; d > 0; d /= 2) square += __shfl_xor_sync(kWholeWarp, square, d);
    const float factor = rsqrtf(square / kClusterDim + p.eps);
#pragma unroll
    for (int j = 0; j < kVector; ++j) x[j] *= factor * weight[j];
    StoreVector(row + column, x);
    SyncDots();
    if (stores) {
      StoreVector(static_cast<bf16*>(p.out) + blockIdx.y * p.out_stride + column, x);
    }
    return row;
  }
};

// The logit of one expert, in all lanes.
template <typename Row>
__device__ __forceinline__ float ClusterLogit(const float* gate, Row row) {
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
  const bf16* x = row.Ready();
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

template <bool kNorm>
__global__ void __launch_bounds__(kClusterThreads, 1)
    ClusterKernel(RouteParams p, RmsNormParams norm) {
#if __CUDA_ARCH__ >= 900
  constexpr int kPer = kClusterExperts / 32;
  __shared__ __align__(16) float logits[kClusterExperts], scratch[kRouteScratch * kClusterExperts];
  __shared__ __align__(16) bf16 row[kNorm ? kClusterDim : 1];
  __shared__ float sums[kDotWarps];
  __shared__ uint64_t arrived;
  const int warp = threadIdx.x / 32, expert = static_cast<int>(blockIdx.x) * kDotWarps + warp;
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    BarrierInit(SharedAddress(&arrived), 1);
    FenceBarrierInit();
    ArriveExpecting(SharedAddress(&arrived), kClusterExperts * 4);
  }
  ArriveCluster();
  if (warp < kDotWarps) {
    const float* gate = p.gate + min(expert, p.experts - 1) * p.dim;
    float logit;
    if constexpr (kNorm) {
      logit = ClusterLogit(gate, NormedRow(norm, row, sums));
    } else {
      logit = ClusterLogit(gate, StoredRow(p));
    }
    if (threadIdx.x % 32 == 0) SendToFirst(logits + expert, &arrived, logit);
    return;
  }
  AwaitCluster();
  if (blockIdx.x > 0) return;
  Choose<1, kPer>(p, blockIdx.y, scratch, [&](float(&v)[kPer]) {
    WaitForPrevious();
    AwaitBarrier(SharedAddress(&arrived), 0);
    LoadLane<false, kPer>(logits, kClusterExperts, v);
  });
#endif
}

}  // namespace hadal::cuda
