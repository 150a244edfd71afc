#include <algorithm>

#include "common/rounding.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/products/grouped_general.h"
#include "kernels/cuda/routing/ops.h"
#include "kernels/cuda/routing/route_choice.cuh"
#include "kernels/cuda/routing/route_cluster.cuh"
#include "kernels/cuda/routing/route_dot.cuh"
#include "kernels/cuda/routing/route_product.cuh"
#include "kernels/cuda/rows/ops.h"

namespace hadal::cuda {
namespace {

constexpr int kDotTokens = 4;       // of one block
constexpr int kMaxDotTokens = 32;   // beyond: a tiled product reads the gate less often
constexpr int kFewDotTokens = 4;    // beyond, bf16 tokens go to the tensor cores
constexpr int kClusterTokens = 16;  // a cluster for each while all of them run at once
constexpr int kMaxSplits = 32;      // of k, so that few tokens keep all SMs busy
constexpr int kChooseWarps = 4;
constexpr int kSumThreads = 256;
constexpr int kSumTokens = 256;  // beyond, and with few splits, a warp adds up its token's

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

// A warp for each token, its logits the sum of few splits. logits: [splits, tokens, experts].
template <int kPer, int kVec>
__global__ void __launch_bounds__(kChooseWarps * 32)
    ChooseKernel(RouteParams p, const float* logits, int splits) {
  extern __shared__ __align__(16) float scratch[];  // [kChooseWarps][kRouteScratch][experts]
  const int warp = threadIdx.x / 32;
  const int64_t token = int64_t{blockIdx.x} * kChooseWarps + warp;
  if (token >= p.tokens) return WaitForPrevious();
  Choose<kVec, kPer>(
      p, token, scratch + warp * kRouteScratch * p.experts, [&](float(&v)[kPer]) {
        WaitForPrevious();
        AllowNext();
        const float* from = logits + token * p.experts;
        LoadLane<true, kVec>(from, p.experts, v);
        for (int s = 1; s < splits; ++s) {
          float more[kPer];
          LoadLane<true, kVec>(from + s * int64_t{p.tokens} * p.experts, p.experts, more);
#pragma unroll
          for (int r = 0; r < kPer; ++r) v[r] += more[r];
        }
      });
}

template <int kVec>
__device__ __forceinline__ Pack<float, kVec> LoadFresh(const float* from) {
  if constexpr (kVec == 1) {
    return {__ldcg(from)};
  } else {
    const float4 v = __ldcg(reinterpret_cast<const float4*>(from));
    return {v.x, v.y, v.z, v.w};
  }
}

// Sums of every `groups`th split, from `group` on, of kVec experts; all loads fly at once.
template <int kVec>
__device__ __forceinline__ Pack<float, kVec> AddSplits(const float* from, int64_t stride, int group,
                                                       int groups, int splits) {
  constexpr int kAtOnce = 8;
  Pack<float, kVec> sum = {};
  for (int base = group; base < splits; base += kAtOnce * groups) {
    Pack<float, kVec> part[kAtOnce] = {};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int s = base + i * groups;
      if (s < splits) part[i] = LoadFresh<kVec>(from + s * stride);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int c = 0; c < kVec; ++c) sum.at[c] += part[i].at[c];
    }
  }
  return sum;
}

// Of warps that add up and the one that chooses when they have: they go different ways.
__device__ __forceinline__ void AnnounceSums() {
  asm volatile("bar.arrive 1, %0;" ::"n"(kSumThreads + 32) : "memory");
}
__device__ __forceinline__ void AwaitSums() {
  asm volatile("bar.sync 1, %0;" ::"n"(kSumThreads + 32) : "memory");
}

// A block for each token: kSumThreads add up its splits, one more warp chooses.
template <int kPer, int kVec>
__global__ void __launch_bounds__(kSumThreads + 32)
    SumAndChooseKernel(RouteParams p, const float* logits, int splits) {
  constexpr int kWide = kVec == 1 ? 1 : 4;
  extern __shared__ __align__(16) float scratch[];  // [kRouteScratch][experts], [groups][experts]
  float* sums = scratch + kRouteScratch * p.experts;
  const int64_t token = blockIdx.x;
  const int columns = p.experts / kWide, groups = max(1, min(kSumThreads / columns, splits));
  if (threadIdx.x < kSumThreads) {
    WaitForPrevious();
    AllowNext();
    for (int i = threadIdx.x; i < columns * groups; i += kSumThreads) {
      const int group = i / columns, expert = (i - group * columns) * kWide;
      *reinterpret_cast<Pack<float, kWide>*>(sums + group * p.experts + expert) =
          AddSplits<kWide>(logits + token * p.experts + expert, int64_t{p.tokens} * p.experts,
                           group, groups, splits);
    }
    return AnnounceSums();
  }
  Choose<kVec, kPer>(p, token, scratch, [&](float(&v)[kPer]) {
    WaitForPrevious();
    AwaitSums();
#pragma unroll
    for (int r = 0; r < kPer; ++r) v[r] = 0;
#pragma unroll 4
    for (int g = 0; g < groups; ++g) {
      float part[kPer];
      LoadLane<false, kVec>(sums + g * p.experts, p.experts, part);
#pragma unroll
      for (int r = 0; r < kPer; ++r) v[r] += part[r];
    }
  });
}

int Tiles(int64_t n, int64_t of_tile) { return static_cast<int>(CeilDiv(n, of_tile)); }

template <typename Act, int kVec>
void LaunchDots(const RouteParams& p, float* logits, CudaContext& context) {
  const auto experts = static_cast<unsigned>(p.experts);
  if (p.tokens == 1) {
    Launch(DotKernel<Act, kVec, 1>, dim3(experts), kDotThreads, 0, context, p, logits);
  } else {
    Launch(DotKernel<Act, kVec, kDotTokens>, dim3(experts, Tiles(p.tokens, kDotTokens)),
           kDotThreads, 0, context, p, logits);
  }
}
template <typename Act>
void LaunchDots(const RouteParams& p, float* logits, CudaContext& context) {
  if (p.dim % 4 == 0) {
    LaunchDots<Act, 4>(p, logits, context);
  } else {
    LaunchDots<Act, 1>(p, logits, context);
  }
}

// kPer: of a lane; kVec of them with one access.
template <int kPer, int kVec>
void LaunchChoice(const RouteParams& p, const float* logits, int splits, CudaContext& context) {
  const int64_t scratch = kRouteScratch * int64_t{p.experts} * 4;
  if (splits > 4 || p.tokens <= kSumTokens) {
    const int64_t sums = std::max(kSumThreads * 4, p.experts) * int64_t{4};
    Launch(SumAndChooseKernel<kPer, kVec>, p.tokens, kSumThreads + 32, scratch + sums, context, p,
           logits, splits);
  } else {
    Launch(ChooseKernel<kPer, kVec>, Tiles(p.tokens, kChooseWarps), kChooseWarps * 32,
           kChooseWarps * scratch, context, p, logits, splits);
  }
}
void LaunchChoice(const RouteParams& p, const float* logits, int splits, CudaContext& context) {
  if (p.experts % 4 != 0) {
    LaunchChoice<16, 1>(p, logits, splits, context);
  } else if (p.experts <= 64) {
    LaunchChoice<2, 2>(p, logits, splits, context);
  } else if (p.experts <= 256) {
    LaunchChoice<8, 4>(p, logits, splits, context);
  } else {
    LaunchChoice<16, 4>(p, logits, splits, context);
  }
}

int64_t LogitCount(int64_t tokens, int64_t experts) {
  return std::max<int64_t>(tokens * experts, int64_t{1} << 20);
}

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

void CheckRoute(const RouteParams& p) {
  HADAL_CHECK(p.experts <= 512 && p.top_k <= p.experts && p.experts % p.groups == 0);
}

bool ClusterFits(const RouteParams& p, const CudaContext& context) {
  return context.act == DType::kBF16 && context.arch >= 90 && p.tokens <= kClusterTokens &&
         p.experts <= kClusterExperts && p.dim == kClusterDim;
}

template <bool kNorm>
void LaunchCluster(const RouteParams& p, const RmsNormParams& norm, CudaContext& context) {
  LaunchClusters(ClusterKernel<kNorm>, dim3(kDotCluster, static_cast<unsigned>(p.tokens)),
                 kDotCluster, kClusterThreads, 0, context, p, norm);
}

// Whether every block can make the norm of its row while others store theirs.
bool NormFits(const RmsNormParams& norm, const RouteParams& p) {
  const bool apart = norm.from == nullptr ? norm.delta == nullptr : norm.from != norm.residual;
  return apart && norm.float_residual && norm.out == p.x && norm.tokens == p.tokens &&
         norm.dim == p.dim && norm.out_stride == p.dim &&
         VectorRows(norm.residual, norm.x_stride, 4) && VectorRows(norm.from, norm.x_stride, 4) &&
         VectorRows(norm.delta, norm.dim, 2) && VectorRows(norm.weight, norm.dim, 4) &&
         VectorRows(norm.out, norm.out_stride, 2);
}

}  // namespace

void NormRoute(const RmsNormParams& norm, const RouteParams& p, CudaContext& context) {
  if (p.tokens > 0 && ClusterFits(p, context) && NormFits(norm, p)) {
    CheckRoute(p);
    return LaunchCluster<true>(p, norm, context);
  }
  RmsNorm(norm, context);
  Route(p, context);
}

void Route(const RouteParams& p, CudaContext& context) {
  if (p.tokens == 0) return;
  CheckRoute(p);
  if (ClusterFits(p, context)) return LaunchCluster<false>(p, {}, context);
  DeviceScratch::Scope scope(context.scratch);
  float* logits = context.scratch.Allocate<float>(LogitCount(p.tokens, p.experts));
  int splits = 1;
  if (context.act == DType::kBF16 && p.dim % 8 == 0 && p.tokens > kFewDotTokens) {
    splits = LaunchProduct(p, logits, context);
  } else if (p.tokens > kMaxDotTokens) {
    LaunchGeneral(p, logits, context);
  } else if (context.act == DType::kF32) {
    LaunchDots<float>(p, logits, context);
  } else {
    LaunchDots<bf16>(p, logits, context);
  }
  LaunchChoice(p, logits, splits, context);
}

int64_t RouteScratchBytes(const OpLimits& limits) {
  return DeviceScratch::Aligned(LogitCount(limits.tokens, limits.experts) * 4);
}

}  // namespace hadal::cuda
