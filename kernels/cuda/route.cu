#include <algorithm>

#include "common/rounding.h"
#include "kernels/cuda/grouped_general.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/route.h"
#include "kernels/cuda/route_choice.cuh"
#include "kernels/cuda/route_product.cuh"

namespace hadal::cuda {
namespace {

constexpr int kDotThreads = 256;
constexpr int kDotWarps = kDotThreads / 32;
constexpr int kDotTokens = 8;      // of one block
constexpr int kMaxDotTokens = 32;  // beyond: a tiled product reads the gate less often
constexpr int kFewDotTokens = 4;   // beyond, bf16 tokens go to the tensor cores
constexpr int kMaxSplits = 32;     // of k, so that few tokens keep all SMs busy
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

__global__ void __launch_bounds__(kRouteThreads) ProductKernel(RouteProductArgs a) {
  extern __shared__ __align__(128) char memory[];
  const uint32_t ring = SharedAddress(memory);
  const int first = static_cast<int>(blockIdx.z) * a.steps;
  // The gate does not depend on earlier kernels: its copies belong to the first group.
  for (int i = 0; i < min(kRouteSlots - 1, a.steps); ++i) {
    CopyGateStep(a, ring + i * kRouteSlotBytes, first + i);
  }
  WaitForPrevious();
  AllowNext();
  for (int i = 0; i < kRouteSlots - 1; ++i) {
    if (i < a.steps) CopyTokenStep(a, ring + i * kRouteSlotBytes, first + i);
    CommitCopies();
  }
  MmaSums sums[kRouteTokens / 8] = {};
  for (int i = 0; i < a.steps; ++i) {
    AwaitCopies<kRouteSlots - 2>();
    __syncthreads();
    const int next = i + kRouteSlots - 1;
    if (next < a.steps) {
      const uint32_t slot = ring + next % kRouteSlots * kRouteSlotBytes;
      CopyGateStep(a, slot, first + next);
      CopyTokenStep(a, slot, first + next);
    }
    CommitCopies();
    MultiplyRouteStep(ring + i % kRouteSlots * kRouteSlotBytes, sums);
  }
  StoreLogits(a, sums);
}

// A warp for each of the block's tokens; all threads add up their logits: [splits, tokens,
// experts].
__global__ void __launch_bounds__(kChooseWarps * 32)
    ChooseKernel(RouteParams p, const float* logits, int splits, int block_tokens) {
  extern __shared__ float scratch[];  // [block_tokens][kRouteScratch][experts]
  const int first = static_cast<int>(blockIdx.x) * block_tokens;
  const int count = min(block_tokens, p.tokens - first), warp = threadIdx.x / 32;
  const int64_t split_stride = int64_t{p.tokens} * p.experts;
  const bool somebodys = warp < count && IsSomebodys(p, first + warp);
  WaitForPrevious();
  AllowNext();
  for (int i = threadIdx.x; i < count * p.experts; i += kChooseWarps * 32) {
    const float* from = logits + int64_t{first} * p.experts + i;
    float sum = 0;
#pragma unroll 16
    for (int s = 0; s < splits; ++s) sum += __ldcg(from + s * split_stride);
    const int token = i / p.experts;
    scratch[token * kRouteScratch * p.experts + (i - token * p.experts)] = sum;
  }
  __syncthreads();
  if (warp >= count) return;
  RouteToken(p, first + warp, somebodys, scratch + warp * kRouteScratch * p.experts);
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

int64_t LogitCount(int64_t tokens, int64_t experts) {
  return std::max<int64_t>(tokens * experts, int64_t{1} << 20);
}

int Tiles(int64_t n, int64_t of_tile) { return static_cast<int>(CeilDiv(n, of_tile)); }

// A block per SM while k can be split for it, two where there are many tokens; no more partial sums
// than there is room for.
int LaunchProduct(const RouteParams& p, float* logits, CudaContext& context) {
  const int tiles_x = Tiles(p.tokens, kRouteTokens), tiles_y = Tiles(p.experts, kRouteExperts);
  const int all_steps = Tiles(p.dim, kRouteStep);
  const int64_t room = LogitCount(p.tokens, p.experts) / (int64_t{p.tokens} * p.experts);
  const int wanted = static_cast<int>(
      std::clamp<int64_t>((tiles_x > 8 ? 2 : 1) * context.sm_count / (tiles_x * tiles_y), 1,
                          std::min<int64_t>({kMaxSplits, room, all_steps})));
  const int steps = Tiles(all_steps, wanted), splits = Tiles(all_steps, steps);
  constexpr int kBytes = kRouteSlots * kRouteSlotBytes;
  static const bool once = [] {
    HADAL_CUDA(
        cudaFuncSetAttribute(ProductKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    return true;
  }();
  (void)once;
  Launch(ProductKernel, dim3(tiles_x, tiles_y, splits), kRouteThreads, kBytes, context,
         RouteProductArgs{static_cast<const bf16*>(p.x), p.gate, logits, p.tokens, p.experts,
                          static_cast<int>(p.dim), steps});
  return splits;
}

void LaunchGeneral(const RouteParams& p, float* logits, CudaContext& context) {
  const WeightView gate{.data = p.gate, .n = p.experts, .k = p.dim, .stride = p.dim};
  GroupedGeneral({.x = p.x,
                  .x_stride = p.dim,
                  .max_tiles = Tiles(p.tokens, kGeneralTileRows),
                  .rows = p.tokens,
                  .w = gate,
                  .n = p.experts,
                  .k = p.dim,
                  .out = logits,
                  .out_stride = p.experts},
                 DType::kF32, false, context);
}

}  // namespace

void Route(const RouteParams& p, CudaContext& context) {
  if (p.tokens == 0) return;
  HADAL_CHECK(p.experts <= 512 && p.top_k <= p.experts && p.experts % p.groups == 0);
  DeviceScratch::Scope scope(context.scratch);
  float* logits = context.scratch.Allocate<float>(LogitCount(p.tokens, p.experts));
  int splits = 1;
  if (p.tokens > kFewDotTokens && context.act == DType::kBF16 && p.dim % 8 == 0) {
    splits = LaunchProduct(p, logits, context);
  } else if (p.tokens > kMaxDotTokens) {
    LaunchGeneral(p, logits, context);
  } else if (context.act == DType::kF32) {
    LaunchDots<float>(p, logits, context);
  } else {
    LaunchDots<bf16>(p, logits, context);
  }
  const int block_tokens = splits > 4 ? 1 : kChooseWarps;
  const int64_t scratch = block_tokens * kRouteScratch * int64_t{p.experts} * 4;
  Launch(ChooseKernel, Tiles(p.tokens, block_tokens), kChooseWarps * 32, scratch, context, p,
         logits, splits, block_tokens);
}

int64_t RouteScratchBytes(const OpLimits& limits) {
  return DeviceScratch::Aligned(LogitCount(limits.tokens, limits.experts) * 4);
}

}  // namespace hadal::cuda
