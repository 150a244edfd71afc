#pragma once

#include "kernels/cuda/moe_few_f8_w13.cuh"
#include "kernels/cuda/moe_few_w13.cuh"

namespace hadal::cuda {

// hidden = silu(gate x) * (up x) by items of 8 gate rows and their 8 up rows, as moe_few_w13.cuh.
// A step is 8 blocks of 128 columns, 4 for each warpgroup: its tile is the item's 16 rows of the
// first block, below them those of the second and so on, and beside it lie the tokens of all four.
// Of the products of 64 rows and 4 * 16 columns, each warp keeps those of its own block.
//
// Four times as many items leave fewer blocks idle in the last turn. That is worth the products
// thrown away where an item of moe_few_f8_w13.cuh, 64 rows, is long: with rows of 7,168 bytes (a
// rank of the 671B model) one token takes 19 us instead of 25, eight take 96 instead of 107; with
// rows of 2,048 bytes one takes 31 instead of 28 (H200).

inline constexpr int kFineBlocks = 8;

struct FineShared {
  FewSums sums;
  FewJobs jobs;
  F8Barriers<kF8W13Stages> barriers;
};

__host__ __device__ inline int FineSteps(int dim) {
  return (dim + kFineBlocks * 128 - 1) / (kFineBlocks * 128);
}

// The thread that has weights brought.
struct FineProducer {
  const FewF8Args& a;
  const W13Items& items;
  int steps;
  uint32_t ring;
  F8Barriers<kF8W13Stages>& barriers;
  int item = blockIdx.x, step = 0;
  F8Stage<kF8W13Stages> stage;

  __device__ void Issue() {
    const bool shared = item < items.shared_items;
    const int routed = item - items.shared_items;
    const int group =
        shared ? item
               : items.jobs.expert[routed / items.tiles] * (a.few.width / 4) + routed % items.tiles;
    const uint32_t full = SharedAddress(&barriers.full[stage.index]);
    AwaitBarrier(SharedAddress(&barriers.empty[stage.index]), stage.parity ^ 1);
    ArriveExpecting(full, 2 * kF8TileBytes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      CopyPairBlocks(ring + (stage.index * 2 + half) * kF8TileBytes, shared ? &a.shared13 : &a.w13,
                     step * kFineBlocks + half * 4, group, full);
    }
    stage.Next();
    if (++step == steps) step = 0, item += gridDim.x;
  }
};

// The weights' scales of a thread's gate row and up row, fetched a step ahead.
struct FineScales {
  const W13Items& items;
  int steps;
  int block = threadIdx.x / 32;  // next
  int item = blockIdx.x;
  const float *gate = nullptr, *up = nullptr;
  float next_gate = 0, next_up = 0;

  __device__ FineScales(const W13Items& list, int steps_of_item)
      : items(list), steps(steps_of_item) {}
  __device__ void Fetch(int count) {
    if (item >= count) return;
    const bool shared = item < items.shared_items;
    const WeightView& w = shared ? items.a.shared13 : items.a.w13;
    if (block < kFineBlocks) {
      const int routed = item - items.shared_items, g = threadIdx.x % 32 / 4;
      const int width = shared ? items.a.shared_width : items.a.width;
      const int row = (shared ? item : routed % items.tiles) * 8 + g;
      const int matrix = shared ? 0 : items.jobs.expert[routed / items.tiles];
      gate = w.scales(matrix, row);
      up = w.scales(matrix, width + row);
    }
    const int at = min(block, static_cast<int>(w.k_blocks) - 1);
    next_gate = __ldg(gate + at);
    next_up = __ldg(up + at);
    block += kFineBlocks;
    if (block >= kFineBlocks * steps) block -= kFineBlocks * steps, item += gridDim.x;
  }
};

__device__ __forceinline__ void ConsumeFine(const W13Items& items, int steps, uint32_t ring,
                                            const F8Tokens& tokens, FineScales& scales,
                                            FineShared& shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, count = items.count();
  F8Stage<kF8W13Stages> stage;
  int turn = 0;
  for (int item = blockIdx.x; item < count; item += gridDim.x, turn ^= 1) {
    float sum[4] = {};
    for (int step = 0; step < steps; ++step) {
      const int block = step * kFineBlocks + warp;
      const float gate = scales.next_gate, up = scales.next_up;
      scales.Fetch(count);
      float part[4];
      AwaitBarrier(SharedAddress(&shared.barriers.full[stage.index]), stage.parity);
      MultiplyTile<4>(ring + (stage.index * 2 + warp / 4) * kF8TileBytes,
                      tokens.tile(step * kFineBlocks + warp / 4 * 4), part);
      if (lane == 0) Arrive(SharedAddress(&shared.barriers.empty[stage.index]));
      AddTile(part, gate, up,
              *reinterpret_cast<const float2*>(tokens.scales + block * kFewTokens + lane % 4 * 2),
              sum);
      stage.Next();
    }
    reinterpret_cast<float4*>(shared.sums[turn][warp])[lane] = {sum[0], sum[1], sum[2], sum[3]};
    SyncThreads(2, kF8Consumers);
    StoreHidden(items.a, items, item, shared.sums, turn);
  }
}

__global__ void __launch_bounds__(kF8Threads, 1)
    FewF8FineKernel(const __grid_constant__ FewF8Args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char memory[];
  constexpr int kRingBytes = kF8W13Stages * 2 * kF8TileBytes;
  const uint32_t ring = SharedAddress(memory);
  char* behind = memory + kRingBytes;
  const int steps = FineSteps(a.few.dim), blocks = steps * kFineBlocks;
  const F8Tokens tokens{ring + kRingBytes,
                        reinterpret_cast<float*>(behind + blocks * kF8SplitBytes), blocks};
  auto& shared = *reinterpret_cast<FineShared*>(tokens.scales + blocks * kFewTokens);
  const W13Items items(a.few, shared.jobs);
  FineProducer producer{a, items, steps, ring, shared.barriers};
  FineScales scales(items, steps);
  const bool produces = threadIdx.x == kF8Consumers;
  if (produces) {
    shared.barriers.Init(kF8Consumers / 32);
    for (int i = 0; i < kF8W13Stages && producer.item < items.shared_items; ++i) producer.Issue();
  }
  const bool early =
      static_cast<int>(blockIdx.x) < items.shared_items && threadIdx.x < kF8Consumers;
  if (early) scales.Fetch(items.shared_items);
  PrepareJobs(a.few, shared.jobs);
  WaitForPrevious();
  AllowNext();
  if (threadIdx.x < kF8Consumers) {
    tokens.Load(a.few);
    SyncThreads(1, kF8Threads);
    if (!early) scales.Fetch(items.count());
    ConsumeFine(items, steps, ring, tokens, scales, shared);
  } else {
    FindJobs(a.few, shared.jobs);
    ArriveThreads(1, kF8Threads);
    while (produces && producer.item < items.count()) producer.Issue();
  }
#endif
}

inline int64_t FewF8FineSharedBytes(const FewExpertsArgs& a) {
  const int64_t blocks = int64_t{FineSteps(a.dim)} * kFineBlocks;
  return int64_t{kF8W13Stages} * 2 * kF8TileBytes + blocks * (kF8SplitBytes + kFewTokens * 4) +
         int64_t{sizeof(FineShared)};
}

// Measured were the items of 128 and of 448 KiB above; the bound lies between.
inline bool FewF8FineFits(const FewExpertsArgs& a) {
  constexpr int64_t kLongItem = 256 << 10;
  return 64 * int64_t{a.dim} >= kLongItem && a.dim % 128 == 0 &&
         FewF8FineSharedBytes(a) <= kFewSharedBytes;
}

}  // namespace hadal::cuda
