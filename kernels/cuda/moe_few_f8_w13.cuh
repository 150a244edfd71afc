#pragma once

#include "kernels/cuda/moe_few_f8.cuh"

namespace hadal::cuda {

// hidden = silu(gate x) * (up x), as moe_few_w13.cuh. An item is 32 gate rows and their 32 up rows.
// A step of it is 256 columns, 128 for each warpgroup.

inline constexpr int kF8W13Stages = 5;

struct F8W13Shared {
  float4 sums[2][128];  // of the second warpgroup, used in turn
  FewJobs jobs;
  F8Barriers<kF8W13Stages> barriers;
};

// Behind the ring: the split tokens, [blocks][16][128], and their scales, [blocks][8].
struct F8Tokens {
  uint32_t tiles;
  float* scales;
  int blocks;  // of 128 columns, rounded up to whole steps

  __host__ __device__ static int Blocks(int dim) { return (dim + 255) / 256 * 2; }

  __device__ uint32_t tile(int block) const { return tiles + block * kF8SplitBytes; }

  // By all consumers.
  __device__ void Load(const FewExpertsArgs& a) const {
    constexpr int kWarps = kF8Consumers / 32, kAtOnce = 4;  // loads in flight
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 16, pairs = (a.tokens + 1) / 2;
    for (int first = warp; first < blocks * pairs; first += kAtOnce * kWarps) {
      uint4 x[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int i = first + u * kWarps, t = TokenOf(i, pairs),
                  column = i / pairs * 128 + lane * 8;
        x[u] = {0, 0, 0, 0};
        if (t < a.tokens && column < a.dim) {
          x[u] = __ldcg(reinterpret_cast<const uint4*>(static_cast<const bf16*>(a.x) +
                                                       int64_t{t} * a.dim + column));
        }
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int i = first + u * kWarps, block = i / pairs, t = TokenOf(i, pairs);
        if (block >= blocks) break;
        float scale;
        StoreSplit(tile(block), t, lane, SplitRow(x[u], &scale));
        if (lane == 0) scales[block * kFewTokens + t] = scale;
      }
    }
    FenceForProducts();
  }

 private:
  static __device__ int TokenOf(int i, int pairs) {
    return i % pairs * 2 + static_cast<int>(threadIdx.x) % 32 / 16;
  }
};

struct F8W13Items {
  const FewExpertsArgs& a;
  const FewJobs& jobs;
  int shared_items, tiles, steps;

  __device__ F8W13Items(const FewExpertsArgs& args, const FewJobs& found)
      : a(args),
        jobs(found),
        shared_items((args.shared_width + 31) / 32),
        tiles((args.width + 31) / 32),
        steps(F8Tokens::Blocks(args.dim) / 2) {}
  __device__ int count() const { return shared_items + jobs.count * tiles; }
  __device__ bool of_shared(int item) const { return item < shared_items; }
  __device__ int job(int item) const { return (item - shared_items) / tiles; }
  __device__ int tile(int item) const {
    return of_shared(item) ? item : (item - shared_items) % tiles;
  }
};

// The thread that has weights brought.
struct F8W13Producer {
  const FewF8Args& a;
  const F8W13Items& items;
  uint32_t ring;
  F8Barriers<kF8W13Stages>& barriers;
  int item = blockIdx.x, step = 0;
  F8Stage<kF8W13Stages> stage;

  __device__ void Issue() {
    const bool shared = items.of_shared(item);
    const uint32_t full = SharedAddress(&barriers.full[stage.index]);
    AwaitBarrier(SharedAddress(&barriers.empty[stage.index]), stage.parity ^ 1);
    ArriveExpecting(full, 2 * kF8TileBytes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      CopyRowPairs(ring + (stage.index * 2 + half) * kF8TileBytes, shared ? &a.shared13 : &a.w13,
                   step * 256 + half * 128, items.tile(item) * 4,
                   shared ? 0 : items.jobs.expert[items.job(item)], full);
    }
    stage.Next();
    if (++step == items.steps) step = 0, item += gridDim.x;
  }
};

// The weights' scales of a thread's two rows, fetched a step ahead.
struct F8W13Scales {
  const F8W13Items& items;
  int block;  // next
  int item;
  const float *gate = nullptr, *up = nullptr;
  float next_gate = 0, next_up = 0;

  __device__ F8W13Scales(const F8W13Items& list)
      : items(list), block(threadIdx.x / 128), item(blockIdx.x) {}
  __device__ void Fetch(int count) {
    if (item >= count) return;
    const bool shared = items.of_shared(item);
    const WeightView& w = shared ? items.a.shared13 : items.a.w13;
    if (block < 2) {
      const int width = shared ? items.a.shared_width : items.a.width;
      const int row = min(items.tile(item) * 32 + static_cast<int>(threadIdx.x) % 128 / 32 * 8 +
                              static_cast<int>(threadIdx.x) % 32 / 4,
                          width - 1);
      const int matrix = shared ? 0 : items.jobs.expert[items.job(item)];
      gate = w.scales(matrix, row);
      up = w.scales(matrix, width + row);
    }
    const int at = min(block, static_cast<int>(w.k_blocks) - 1);
    next_gate = __ldg(gate + at);
    next_up = __ldg(up + at);
    block += 2;
    if (block >= 2 * items.steps) block -= 2 * items.steps, item += gridDim.x;
  }
};

__device__ __forceinline__ void StoreHidden(const F8W13Items& items, int item,
                                            const float (&sum)[4]) {
  const FewExpertsArgs& a = items.a;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
  const int output = items.tile(item) * 32 + warp * 8 + g;
  const bool shared = items.of_shared(item);
  if (output >= (shared ? a.shared_width : a.width)) return;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int token = 2 * q + c;
    const int row =
        shared ? (token < a.tokens ? token : -1) : items.jobs.row[items.job(item)][token];
    if (row < 0) continue;
    bf16* to = shared ? a.shared_hidden + row * a.shared_stride : a.hidden + row * a.hidden_stride;
    to[output] = FromFloat<bf16>(SiluMul(sum[c], sum[2 + c]));
  }
}

__device__ __forceinline__ void ConsumeW13(const F8W13Items& items, uint32_t ring,
                                           const F8Tokens& tokens, F8W13Scales& scales,
                                           F8W13Shared& shared) {
  const int group = threadIdx.x / 128, q = threadIdx.x % 4, count = items.count();
  F8Stage<kF8W13Stages> stage;
  int turn = 0;
  for (int item = blockIdx.x; item < count; item += gridDim.x, turn ^= 1) {
    float sum[4] = {};
    for (int step = 0; step < items.steps; ++step) {
      const int block = 2 * step + group;
      const float gate = scales.next_gate, up = scales.next_up;
      scales.Fetch(count);
      float part[4];
      AwaitBarrier(SharedAddress(&shared.barriers.full[stage.index]), stage.parity);
      MultiplyTile<1>(ring + (stage.index * 2 + group) * kF8TileBytes, tokens.tile(block), part);
      if (threadIdx.x % 32 == 0) Arrive(SharedAddress(&shared.barriers.empty[stage.index]));
      AddTile(part, gate, up,
              *reinterpret_cast<const float2*>(tokens.scales + block * kFewTokens + 2 * q), sum);
      stage.Next();
    }
    float4& other = shared.sums[turn][threadIdx.x % 128];
    if (group == 1) other = {sum[0], sum[1], sum[2], sum[3]};
    SyncThreads(2, kF8Consumers);
    if (group == 1) continue;
    sum[0] += other.x, sum[1] += other.y, sum[2] += other.z, sum[3] += other.w;
    StoreHidden(items, item, sum);
  }
}

__global__ void __launch_bounds__(kF8Threads, 1)
    FewF8W13Kernel(const __grid_constant__ FewF8Args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char memory[];
  constexpr int kRingBytes = kF8W13Stages * 2 * kF8TileBytes;
  const uint32_t ring = SharedAddress(memory);
  char* behind = memory + kRingBytes;
  const int blocks = F8Tokens::Blocks(a.few.dim);
  const F8Tokens tokens{ring + kRingBytes,
                        reinterpret_cast<float*>(behind + blocks * kF8SplitBytes), blocks};
  auto& shared = *reinterpret_cast<F8W13Shared*>(tokens.scales + blocks * kFewTokens);
  const F8W13Items items(a.few, shared.jobs);
  F8W13Producer producer{a, items, ring, shared.barriers};
  F8W13Scales scales(items);
  const bool produces = threadIdx.x == kF8Consumers;
  if (produces) {
    shared.barriers.Init(kF8Consumers / 32);
    for (int i = 0; i < kF8W13Stages && items.of_shared(producer.item); ++i) producer.Issue();
  }
  const bool early = items.of_shared(blockIdx.x) && threadIdx.x < kF8Consumers;
  if (early) scales.Fetch(items.shared_items);
  PrepareJobs(a.few, shared.jobs);
  WaitForPrevious();
  AllowNext();
  if (threadIdx.x < kF8Consumers) {
    tokens.Load(a.few);
    SyncThreads(1, kF8Threads);
    if (!early) scales.Fetch(items.count());
    ConsumeW13(items, ring, tokens, scales, shared);
  } else {
    FindJobs(a.few, shared.jobs);
    ArriveThreads(1, kF8Threads);
    while (produces && producer.item < items.count()) producer.Issue();
  }
#endif
}

inline int64_t FewF8W13SharedBytes(const FewExpertsArgs& a) {
  return int64_t{kF8W13Stages} * 2 * kF8TileBytes +
         int64_t{F8Tokens::Blocks(a.dim)} * (kF8SplitBytes + kFewTokens * 4) +
         int64_t{sizeof(F8W13Shared)};
}

}  // namespace hadal::cuda
