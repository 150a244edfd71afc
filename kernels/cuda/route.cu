#include "kernels/cuda/grouped_general.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/route_choice.cuh"

namespace hadal::cuda {
namespace {

constexpr int kDotThreads = 256;
constexpr int kDotWarps = kDotThreads / 32;
constexpr int kDotTokens = 8;     // of one block
constexpr int kMaxDotTokens = 64; // beyond: a tiled product reads the gate less often
constexpr int kChooseWarps = 4;

// Brings a row into the L2 cache; the gate does not depend on earlier kernels.
__device__ void PrefetchRow(const float* row, int64_t count) {
  for (int64_t i = threadIdx.x * 32; i < count; i += kDotThreads * 32) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(row + i));
  }
}

// One block per expert and kDotTokens tokens: at batch 1 the gate is read by as many blocks as
// there are experts.
template <typename Act, int kVec>
__global__ void __launch_bounds__(kDotThreads) DotKernel(RouteParams p, float* logits) {
  __shared__ float partial[kDotTokens][kDotWarps];
  const int expert = static_cast<int>(blockIdx.x);
  const int first = static_cast<int>(blockIdx.y) * kDotTokens;
  const int count = min(kDotTokens, p.tokens - first);
  const float* gate = p.gate + expert * p.dim;
  const Act* x = static_cast<const Act*>(p.x) + first * p.dim;
  PrefetchRow(gate, p.dim);
  WaitForPrevious();
  AllowNext();
  float sum[kDotTokens] = {};
#pragma unroll 2
  for (int64_t k = threadIdx.x * kVec; k < p.dim; k += kDotThreads * kVec) {
    const auto g = *reinterpret_cast<const Pack<float, kVec>*>(gate + k);
#pragma unroll
    for (int t = 0; t < kDotTokens; ++t) {
      if (t >= count) break;
      const auto v = *reinterpret_cast<const Pack<Act, kVec>*>(x + t * p.dim + k);
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[t] += g.at[i] * ToFloat(v.at[i]);
    }
  }
#pragma unroll
  for (int t = 0; t < kDotTokens; ++t) {
    sum[t] = WarpSum(sum[t]);
    if (threadIdx.x % 32 == 0) partial[t][threadIdx.x / 32] = sum[t];
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < count) {
    float total = 0;
    for (int w = 0; w < kDotWarps; ++w) total += partial[threadIdx.x][w];
    logits[(first + static_cast<int64_t>(threadIdx.x)) * p.experts + expert] = total;
  }
}

__global__ void __launch_bounds__(kChooseWarps * 32) ChooseKernel(RouteParams p,
                                                                  const float* logits) {
  extern __shared__ float scratch[];  // [kChooseWarps][kRouteScratch][experts]
  const int warp = threadIdx.x / 32;
  const int64_t t = int64_t{blockIdx.x} * kChooseWarps + warp;
  WaitForPrevious();
  AllowNext();
  if (t >= p.tokens) return;
  RouteToken(p, logits + t * p.experts, t, scratch + warp * kRouteScratch * p.experts);
}

template <typename Act>
void LaunchDots(const RouteParams& p, float* logits, CudaContext& context) {
  const dim3 grid(static_cast<unsigned>(p.experts),
                  static_cast<unsigned>((p.tokens + kDotTokens - 1) / kDotTokens));
  if (p.dim % 4 == 0) {
    Launch(DotKernel<Act, 4>, grid, kDotThreads, 0, context, p, logits);
  } else {
    Launch(DotKernel<Act, 1>, grid, kDotThreads, 0, context, p, logits);
  }
}

}  // namespace

void Route(const RouteParams& p, CudaContext& context) {
  if (p.tokens == 0) return;
  HADAL_CHECK(p.experts <= 512 && p.top_k <= p.experts && p.experts % p.groups == 0);
  DeviceScratch::Scope scope(context.scratch);
  float* logits = context.scratch.Allocate<float>(int64_t{p.tokens} * p.experts);
  if (p.tokens > kMaxDotTokens) {
    WeightView gate{.data = p.gate, .n = p.experts, .k = p.dim, .stride = p.dim};
    GroupedGeneral({.x = p.x, .x_stride = p.dim,
                    .max_tiles = (p.tokens + kGeneralTileRows - 1) / kGeneralTileRows,
                    .rows = p.tokens, .w = gate, .n = p.experts, .k = p.dim, .out = logits,
                    .out_stride = p.experts},
                   DType::kF32, false, context);
  } else if (context.act == DType::kF32) {
    LaunchDots<float>(p, logits, context);
  } else {
    LaunchDots<bf16>(p, logits, context);
  }
  const auto blocks = static_cast<unsigned>((p.tokens + kChooseWarps - 1) / kChooseWarps);
  const int64_t scratch = kChooseWarps * kRouteScratch * int64_t{p.experts} * 4;
  Launch(ChooseKernel, blocks, kChooseWarps * 32, scratch, context, p, logits);
}

}  // namespace hadal::cuda
