#pragma once

#include "kernels/cuda/moe_few_f8.cuh"

namespace hadal::cuda {

// out = shared w2 hidden + sum over the local experts of weight * (w2 hidden). A cluster makes 64
// outputs; its blocks divide the steps, 128 columns each, first those of the shared MLP, then
// expert by expert. Warpgroups take a block's steps in turn, and split the hidden values of a step
// themselves. Sums are added in the order of blocks and warpgroups.

inline constexpr int kF8W2Stages = 8;
inline constexpr int kF8W2MaxSplits = 4;
inline constexpr int kF8W2Groups = 4;  // warpgroups that multiply
inline constexpr int kF8W2Consumers = 128 * kF8W2Groups;
inline constexpr int kF8W2Threads = kF8W2Consumers + 32;
inline constexpr int kF8W2Ahead = 2;  // steps of a warpgroup whose hidden values are under way

struct F8W2Shared {
  float4 sums[kF8W2Groups * 4 * 32];          // [block, warpgroup][slab that this block owns][lane]
  float scales[2 * kF8W2Groups][kFewTokens];  // of the split tokens, with the choices' weights
  FewJobs jobs;
  F8Barriers<kF8W2Stages> barriers;
};

// A step: block of 128 columns of the shared MLP (part -1) or of job `part`.
struct F8W2Cursor {
  int part, block;
};

struct F8W2Steps {
  const FewArgs& a;
  const FewJobs& jobs;
  int shared_steps, steps;

  static __device__ int StepsOf(const WeightView& w, int width) {
    return width == 0 ? 0 : (width + w.k_lead + 127) / 128;
  }
  __device__ F8W2Steps(const FewArgs& args, const FewJobs& found)
      : a(args),
        jobs(found),
        shared_steps(StepsOf(args.shared2, args.shared_width)),
        steps(StepsOf(args.w2, args.width)) {}
  __device__ int count() const { return shared_steps + jobs.count * steps; }
  __device__ F8W2Cursor At(int step) const {
    if (step < shared_steps) return {-1, step};
    return {(step - shared_steps) / steps, (step - shared_steps) % steps};
  }
  __device__ __forceinline__ void Advance(int by, F8W2Cursor& at) const {
    at.block += by;
    for (int own = at.part < 0 ? shared_steps : steps; at.block >= own; own = steps) {
      at.block -= own;
      ++at.part;
    }
  }
};

// What a consumer thread needs of a step beside the weights, fetched before they are there.
struct F8W2Operands {
  uint4 x;          // eight hidden values of token thread % 128 / 16
  float factor;     // of that token
  float low, high;  // scales of the thread's weight rows

  __device__ __forceinline__ void Fetch(const F8W2Steps& steps, const F8W2Cursor& at, int row0) {
    const FewArgs& a = steps.a;
    const int part = at.part, block = at.block;
    const WeightView& w = part < 0 ? a.shared2 : a.w2;
    const int token = threadIdx.x % 128 / 16, g = threadIdx.x % 32 / 4;
    const int stride = part < 0 ? a.shared_stride : a.hidden_stride;
    const int row = part >= 0 ? steps.jobs.row[part][token] : token < a.tokens ? token : -1;
    const int column = block * 128 + static_cast<int>(threadIdx.x) % 16 * 8 - w.k_lead;
    factor = part < 0 ? 1.0f : steps.jobs.weight[part][token];
    x = {0, 0, 0, 0};
    if (row >= 0 && column >= 0 && column < stride) {
      const bf16* from = (part < 0 ? a.shared_hidden : a.hidden) + row * stride + column;
      x = __ldcg(reinterpret_cast<const uint4*>(from));
    }
    const int first = row0 + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + g;
    const int matrix = part < 0 ? 0 : steps.jobs.expert[part];
    low = __ldg(w.scales(matrix, min(first, a.dim - 1)) + block);
    high = __ldg(w.scales(matrix, min(first + 8, a.dim - 1)) + block);
  }
};

// Steps [first, end) of this block.
struct F8W2Range {
  int first, end;
  __device__ explicit F8W2Range(int count) {
    const int splits = gridDim.x, rank = blockIdx.x;
    first = count * rank / splits;
    end = count * (rank + 1) / splits;
  }
};

__device__ __forceinline__ void ProduceW2(const FewF8Args& a, const F8W2Steps& steps,
                                          const F8W2Range& range, uint32_t ring,
                                          F8Barriers<kF8W2Stages>& barriers) {
  F8Stage<kF8W2Stages> stage;
  F8W2Cursor at = steps.At(range.first);
  for (int step = range.first; step < range.end; ++step) {
    const bool shared = at.part < 0;
    const uint32_t full = SharedAddress(&barriers.full[stage.index]);
    AwaitBarrier(SharedAddress(&barriers.empty[stage.index]), stage.parity ^ 1);
    ArriveExpecting(full, kF8TileBytes);
    CopyRows64(ring + stage.index * kF8TileBytes, shared ? &a.shared2 : &a.w2,
               at.block * 128 - (shared ? a.few.shared2 : a.few.w2).k_lead, blockIdx.y * 64,
               shared ? 0 : steps.jobs.expert[at.part], full);
    stage.Next();
    steps.Advance(1, at);
  }
}

// tiles: the split tokens, two of each warpgroup.
__device__ __forceinline__ void ConsumeW2(const F8W2Steps& steps, const F8W2Range& range,
                                          uint32_t ring, uint32_t tiles, F8W2Shared& shared,
                                          float (&sum)[4]) {
  const int group = threadIdx.x / 128, lane = threadIdx.x % 16, token = threadIdx.x % 128 / 16;
  const int q = threadIdx.x % 4, row0 = blockIdx.y * 64;
  F8Stage<kF8W2Stages> stage;
  stage.Next(group);
  F8W2Operands ahead[kF8W2Ahead];
  const int first = range.first + group;
  F8W2Cursor at = steps.At(first);
  const auto fetch = [&](F8W2Operands& to, int step) {
    if (step >= range.end) return;
    to.Fetch(steps, at, row0);
    steps.Advance(kF8W2Groups, at);
  };
#pragma unroll
  for (int i = 0; i < kF8W2Ahead; ++i) fetch(ahead[i], first + i * kF8W2Groups);
  int buffer = group * 2;
  for (int begin = first; begin < range.end; begin += kF8W2Ahead * kF8W2Groups) {
#pragma unroll
    for (int i = 0; i < kF8W2Ahead; ++i, buffer ^= 1) {
      const int step = begin + i * kF8W2Groups;
      if (step >= range.end) break;
      const F8W2Operands now = ahead[i];
      const uint32_t tile = tiles + buffer * kF8SplitBytes;
      float scale;
      StoreSplit(tile, token, lane, SplitRow(now.x, &scale));
      if (lane == 0) shared.scales[buffer][token] = scale * now.factor;
      FenceForProducts();
      SyncThreads(1 + group, 128);
      fetch(ahead[i], step + kF8W2Ahead * kF8W2Groups);
      float part[4];
      AwaitBarrier(SharedAddress(&shared.barriers.full[stage.index]), stage.parity);
      MultiplyTile(ring + stage.index * kF8TileBytes, tile, part);
      if (threadIdx.x % 32 == 0) Arrive(SharedAddress(&shared.barriers.empty[stage.index]));
      AddTile(part, now.low, now.high,
              *reinterpret_cast<const float2*>(&shared.scales[buffer][2 * q]), sum);
      stage.Next(kF8W2Groups);
    }
  }
}

// To the block that owns the slab: 16 rows, of warp `slab` of a warpgroup.
__device__ __forceinline__ void HandOver(F8W2Shared& shared, const float (&sum)[4]) {
  const int share = 4 / gridDim.x, slab = threadIdx.x % 128 / 32;
  const int source = blockIdx.x * kF8W2Groups + threadIdx.x / 128;
  StoreRemote16(
      SharedAddress(&shared.sums[(source * share + slab % share) * 32 + threadIdx.x % 32]),
      slab / share, sum);
}

__device__ __forceinline__ void AddUp(const FewArgs& a, const F8W2Shared& shared) {
  const int share = 4 / gridDim.x, i = threadIdx.x;
  if (i >= share * 32) return;
  float sum[4] = {};
  for (int source = 0; source < kF8W2Groups * static_cast<int>(gridDim.x); ++source) {
    const float4 v = shared.sums[source * share * 32 + i];
    sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
  }
  const int slab = blockIdx.x * share + i / 32;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int row = blockIdx.y * 64 + slab * 16 + i % 32 / 4 + c / 2 * 8;
    const int token = i % 4 * 2 + c % 2;
    if (token < a.tokens && row < a.dim) {
      a.out[int64_t{token} * a.dim + row] = FromFloat<bf16>(sum[c]);
    }
  }
}

// Grid: splits (one cluster), tiles of 64 outputs. Two blocks must fit an SM, as clusters of 4
// leave some SMs out: of 132 they reach 120.
__global__ void __launch_bounds__(kF8W2Threads, 2)
    FewF8W2Kernel(const __grid_constant__ FewF8Args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char memory[];
  const uint32_t ring = SharedAddress(memory), tiles = ring + kF8W2Stages * kF8TileBytes;
  auto& shared = *reinterpret_cast<F8W2Shared*>(memory + kF8W2Stages * kF8TileBytes +
                                                2 * kF8W2Groups * kF8SplitBytes);
  ArriveCluster();  // this block is there
  if (threadIdx.x == kF8W2Consumers) shared.barriers.Init(4);
  // The choices were written before the kernel of w13 let this one start: weights may be fetched
  // while it still runs, hidden values may not.
  PrepareJobs(a.few, shared.jobs);
  if (threadIdx.x < 32) FindJobs(a.few, shared.jobs);
  __syncthreads();
  const F8W2Steps steps(a.few, shared.jobs);
  const F8W2Range range(steps.count());
  float sum[4] = {};
  if (threadIdx.x == kF8W2Consumers) {
    ProduceW2(a, steps, range, ring, shared.barriers);
  } else if (threadIdx.x < kF8W2Consumers) {
    WaitForPrevious();
    AllowNext();
    ConsumeW2(steps, range, ring, tiles, shared, sum);
  }
  __syncwarp();
  AwaitCluster();
  if (threadIdx.x < kF8W2Consumers) HandOver(shared, sum);
  ArriveCluster();
  AwaitCluster();
  AddUp(a.few, shared);
#endif
}

inline int64_t FewF8W2SharedBytes() {
  return kF8W2Stages * kF8TileBytes + 2 * kF8W2Groups * kF8SplitBytes + int64_t{sizeof(F8W2Shared)};
}

}  // namespace hadal::cuda
