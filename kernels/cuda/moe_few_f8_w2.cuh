#pragma once

#include "kernels/cuda/moe_few_f8.cuh"

namespace hadal::cuda {

// out = shared w2 hidden + sum over the local experts of weight * (w2 hidden). A cluster makes
// 64 / kFold outputs; its blocks divide the columns in steps of kFold times 128, first those of the
// shared MLP, then expert by expert. Warpgroups take a block's steps in turn, and split the hidden
// values of a step themselves. Sums are added in the order of blocks, warpgroups and folds.
//
// A fold of two makes clusters of two enough to have a block on nearly every multiprocessor;
// clusters of four leave some out (of 132 they reach 120), and others get two blocks.

inline constexpr int kF8W2Groups = 4;  // warpgroups that multiply
inline constexpr int kF8W2Consumers = 128 * kF8W2Groups;
inline constexpr int kF8W2Threads = kF8W2Consumers + 32;

template <int kFold>
struct F8W2Tile {
  static constexpr int kRows = 64 / kFold;
  static constexpr int kSlabs = 4 / kFold;  // of 16 rows
  static constexpr int kStages = 8;
  static constexpr int kAhead = 2;  // steps whose hidden values are under way
  // More threads than there are leave registers for w13's block and the next product's.
  static constexpr int kBound = kFold == 1 ? kF8W2Threads : 896;
  // Split tokens of a warpgroup: two blocks of columns in turn, or those of one step.
  static constexpr int kSplits = kFold == 1 ? 2 : kFold;
  static constexpr int kRingBytes = kStages * kF8TileBytes;
  static constexpr int kTokenBytes = kF8W2Groups * kSplits * kF8SplitBytes;
};

template <int kFold>
struct F8W2Shared {
  // [block, warpgroup, fold][slab that this block owns][lane]
  float4 sums[kF8W2Groups * 4 * 32];
  // Of the split tokens, with the choices' weights.
  float scales[kF8W2Groups * F8W2Tile<kFold>::kSplits][kFewTokens];
  FewJobs jobs;
  F8Barriers<F8W2Tile<kFold>::kStages> barriers;
};

// A block of 128 columns of the shared MLP (part -1) or of job `part`.
struct F8W2Cursor {
  int part, block;
};

struct F8W2Blocks {
  const FewExpertsArgs& a;
  const FewJobs& jobs;
  int of_shared, of_job, count;

  static __device__ int BlocksOf(const WeightView& w, int width) {
    return width == 0 ? 0 : (width + w.k_lead + 127) / 128;
  }
  __device__ F8W2Blocks(const FewExpertsArgs& args, const FewJobs& found)
      : a(args),
        jobs(found),
        of_shared(BlocksOf(args.shared2, args.shared_width)),
        of_job(BlocksOf(args.w2, args.width)),
        count(of_shared + found.count * of_job) {}
  __device__ F8W2Cursor At(int i) const {
    if (i < of_shared) return {-1, i};
    return {(i - of_shared) / of_job, (i - of_shared) % of_job};
  }
  __device__ __forceinline__ void Advance(int by, F8W2Cursor& at) const {
    at.block += by;
    for (int own = at.part < 0 ? of_shared : of_job; at.block >= own; own = of_job) {
      at.block -= own;
      ++at.part;
    }
  }
};

// What a consumer thread needs of a step beside the weights, fetched before they are there.
template <int kFold>
struct F8W2Operands {
  uint4 x[kFold];       // eight hidden values of token thread % 128 / 16
  float factor[kFold];  // of that token
  float low, high;      // scales of the thread's weight rows

  // The step that begins at block `i`, `at`.
  __device__ __forceinline__ void Fetch(const F8W2Blocks& blocks, int i, F8W2Cursor at, int row0) {
    low = high = 0;
#pragma unroll
    for (int f = 0; f < kFold; ++f) {
      x[f] = {0, 0, 0, 0};
      factor[f] = 0;
      if (i + f >= blocks.count) continue;
      FetchHidden(blocks, at, f);
      if (FoldOf<kFold>() == f) FetchScales(blocks, at, row0);
      if (f + 1 < kFold) blocks.Advance(1, at);
    }
  }

 private:
  __device__ __forceinline__ void FetchHidden(const F8W2Blocks& blocks, F8W2Cursor at, int f) {
    const FewExpertsArgs& a = blocks.a;
    const int part = at.part, token = threadIdx.x % 128 / 16;
    const int stride = part < 0 ? a.shared_stride : a.hidden_stride;
    const int row = part >= 0 ? blocks.jobs.row[part][token] : token < a.tokens ? token : -1;
    const int column = at.block * 128 + static_cast<int>(threadIdx.x) % 16 * 8 -
                       (part < 0 ? a.shared2 : a.w2).k_lead;
    factor[f] = part < 0 ? 1.0f : blocks.jobs.weight[part][token];
    if (row < 0 || column < 0 || column >= stride) return;
    const bf16* from = (part < 0 ? a.shared_hidden : a.hidden) + row * stride + column;
    x[f] = __ldcg(reinterpret_cast<const uint4*>(from));
  }
  __device__ __forceinline__ void FetchScales(const F8W2Blocks& blocks, F8W2Cursor at, int row0) {
    const FewExpertsArgs& a = blocks.a;
    const WeightView& w = at.part < 0 ? a.shared2 : a.w2;
    const int slab = static_cast<int>(threadIdx.x) % 128 / 32 % F8W2Tile<kFold>::kSlabs;
    const int first = row0 + slab * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
    const int matrix = at.part < 0 ? 0 : blocks.jobs.expert[at.part];
    low = __ldg(w.scales(matrix, min(first, a.dim - 1)) + at.block);
    high = __ldg(w.scales(matrix, min(first + 8, a.dim - 1)) + at.block);
  }
};

// Steps [first, end) of this block; the last of all may be cut short.
template <int kFold>
struct F8W2Range {
  int first, end;
  __device__ explicit F8W2Range(int blocks) {
    const int splits = gridDim.x, rank = blockIdx.x, steps = (blocks + kFold - 1) / kFold;
    first = steps * rank / splits;
    end = steps * (rank + 1) / splits;
  }
};

template <int kFold>
__device__ __forceinline__ void ProduceW2(const FewF8Args& a, const F8W2Blocks& blocks,
                                          const F8W2Range<kFold>& range, uint32_t ring,
                                          F8W2Shared<kFold>& shared) {
  constexpr int kOutside = 1 << 24;  // a column that is not there: zeros
  F8Stage<F8W2Tile<kFold>::kStages> stage;
  F8W2Cursor at = blocks.At(range.first * kFold);
  for (int step = range.first; step < range.end; ++step) {
    const uint32_t full = SharedAddress(&shared.barriers.full[stage.index]);
    AwaitBarrier(SharedAddress(&shared.barriers.empty[stage.index]), stage.parity ^ 1);
    ArriveExpecting(full, kF8TileBytes);
#pragma unroll
    for (int f = 0; f < kFold; ++f) {
      const bool inside = step * kFold + f < blocks.count, of_shared = at.part < 0;
      const int lead = (of_shared ? a.few.shared2 : a.few.w2).k_lead;
      CopyRows(ring + stage.index * kF8TileBytes + f * (kF8TileBytes / kFold),
               of_shared ? &a.shared2 : &a.w2, inside ? at.block * 128 - lead : kOutside,
               blockIdx.y * F8W2Tile<kFold>::kRows,
               inside && !of_shared ? blocks.jobs.expert[at.part] : 0, full);
      blocks.Advance(1, at);
    }
    stage.Next();
  }
}

// tokens: the split tokens of this warpgroup.
template <int kFold>
__device__ __forceinline__ void ConsumeW2(const F8W2Blocks& blocks, const F8W2Range<kFold>& range,
                                          uint32_t ring, uint32_t tokens,
                                          F8W2Shared<kFold>& shared, float (&sum)[4]) {
  using Tile = F8W2Tile<kFold>;
  const int group = threadIdx.x / 128, lane = threadIdx.x % 16, token = threadIdx.x % 128 / 16;
  const int q = threadIdx.x % 4, row0 = blockIdx.y * Tile::kRows;
  auto* scales = &shared.scales[group * Tile::kSplits];
  F8Stage<Tile::kStages> stage;
  stage.Next(group);
  F8W2Operands<kFold> ahead[Tile::kAhead];
  const int first = range.first + group;
  F8W2Cursor at = blocks.At(first * kFold);
  const auto fetch = [&](F8W2Operands<kFold>& to, int step) {
    if (step >= range.end) return;
    to.Fetch(blocks, step * kFold, at, row0);
    blocks.Advance(kF8W2Groups * kFold, at);
  };
#pragma unroll
  for (int i = 0; i < Tile::kAhead; ++i) fetch(ahead[i], first + i * kF8W2Groups);
  for (int begin = first; begin < range.end; begin += Tile::kAhead * kF8W2Groups) {
#pragma unroll
    for (int i = 0; i < Tile::kAhead; ++i) {
      const int step = begin + i * kF8W2Groups, buffer = kFold == 1 ? i : 0;
      if (step >= range.end) break;
      const F8W2Operands<kFold> now = ahead[i];
      if (kFold > 1) SyncThreads(1 + group, 128);  // the products of the step before are there
#pragma unroll
      for (int f = 0; f < kFold; ++f) {
        float scale;
        StoreSplit(tokens + (buffer + f) * kF8SplitBytes, token, lane, SplitRow(now.x[f], &scale));
        if (lane == 0) scales[buffer + f][token] = scale * now.factor[f];
      }
      FenceForProducts();
      SyncThreads(1 + group, 128);
      fetch(ahead[i], step + Tile::kAhead * kF8W2Groups);
      float part[4];
      AwaitBarrier(SharedAddress(&shared.barriers.full[stage.index]), stage.parity);
      MultiplyTile<kFold>(ring + stage.index * kF8TileBytes, tokens + buffer * kF8SplitBytes, part);
      if (threadIdx.x % 32 == 0) Arrive(SharedAddress(&shared.barriers.empty[stage.index]));
      AddTile(part, now.low, now.high,
              *reinterpret_cast<const float2*>(&scales[buffer + FoldOf<kFold>()][2 * q]), sum);
      stage.Next(kF8W2Groups);
    }
  }
}

// To the block that owns the slab: 16 rows, of one warp of each fold of a warpgroup.
template <int kFold>
__device__ __forceinline__ void HandOver(F8W2Shared<kFold>& shared, const float (&sum)[4]) {
  constexpr int kSlabs = F8W2Tile<kFold>::kSlabs;
  const int share = kSlabs / gridDim.x, slab = threadIdx.x % 128 / 32 % kSlabs;
  const int source = (blockIdx.x * kF8W2Groups + threadIdx.x / 128) * kFold + FoldOf<kFold>();
  StoreRemote16(
      SharedAddress(&shared.sums[(source * share + slab % share) * 32 + threadIdx.x % 32]),
      slab / share, sum);
}

template <int kFold>
__device__ __forceinline__ void AddUp(const FewExpertsArgs& a, const F8W2Shared<kFold>& shared) {
  using Tile = F8W2Tile<kFold>;
  const int share = Tile::kSlabs / gridDim.x, i = threadIdx.x;
  if (i >= share * 32) return;
  float sum[4] = {};
  for (int source = 0; source < kF8W2Groups * kFold * static_cast<int>(gridDim.x); ++source) {
    const float4 v = shared.sums[source * share * 32 + i];
    sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
  }
  const int slab = blockIdx.x * share + i / 32;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int row = blockIdx.y * Tile::kRows + slab * 16 + i % 32 / 4 + c / 2 * 8;
    const int token = i % 4 * 2 + c % 2;
    if (token < a.tokens && row < a.dim) {
      a.out[int64_t{token} * a.dim + row] = FromFloat<bf16>(sum[c]);
    }
  }
}

// Grid: splits (one cluster), tiles of 64 / kFold outputs. It should find room beside the kernel of
// w13, in registers too.
template <int kFold>
__global__ void __launch_bounds__(F8W2Tile<kFold>::kBound, kFold == 1 ? 2 : 1)
    FewF8W2Kernel(const __grid_constant__ FewF8Args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Tile = F8W2Tile<kFold>;
  extern __shared__ __align__(1024) char memory[];
  const uint32_t ring = SharedAddress(memory), tokens = ring + Tile::kRingBytes;
  auto& shared =
      *reinterpret_cast<F8W2Shared<kFold>*>(memory + Tile::kRingBytes + Tile::kTokenBytes);
  ArriveCluster();  // this block is there
  if (threadIdx.x == kF8W2Consumers) shared.barriers.Init(4);
  // The choices were written before the kernel of w13 let this one start: weights may be fetched
  // while it still runs, hidden values may not.
  PrepareJobs(a.few, shared.jobs);
  if (threadIdx.x < 32) FindJobs(a.few, shared.jobs);
  __syncthreads();
  const F8W2Blocks blocks(a.few, shared.jobs);
  const F8W2Range<kFold> range(blocks.count);
  float sum[4] = {};
  if (threadIdx.x == kF8W2Consumers) {
    ProduceW2<kFold>(a, blocks, range, ring, shared);
  } else if (threadIdx.x < kF8W2Consumers) {
    WaitForPrevious();
    AllowNext();
    const uint32_t own = threadIdx.x / 128 * Tile::kSplits * kF8SplitBytes;
    ConsumeW2<kFold>(blocks, range, ring, tokens + own, shared, sum);
  }
  __syncwarp();
  AwaitCluster();
  if (threadIdx.x < kF8W2Consumers) HandOver<kFold>(shared, sum);
  ArriveCluster();
  AwaitCluster();
  AddUp<kFold>(a.few, shared);
#endif
}

template <int kFold>
constexpr int64_t FewF8W2SharedBytes() {
  using Tile = F8W2Tile<kFold>;
  return Tile::kRingBytes + Tile::kTokenBytes + int64_t{sizeof(F8W2Shared<kFold>)};
}

}  // namespace hadal::cuda
