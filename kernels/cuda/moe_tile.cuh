#pragma once

#include <algorithm>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe_mma.cuh"
#include "kernels/cuda/moe_tile.h"
#include "kernels/cuda/wgmma.cuh"

namespace hadal::cuda {

// Grouped products of many rows per expert. A block makes 128 rows by kWeightRows weight rows of one
// expert at a time: warpgroup 0 fetches (rows one by one, for they are gathered; weights by tensor
// copies), warpgroups 1 and 2 multiply 64 rows each.

inline constexpr int kTileThreads = 384;
inline constexpr int kTileProducers = 128;
inline constexpr int kTileConsumerWarps = 8;
// Steps whose rows may be under way when the producer announces an older one.
inline constexpr int kTileLag = 2;

template <typename W, bool kGated>
struct TileShape {
  using Weight = W;
  static constexpr bool kIsGated = kGated;
  static constexpr int kStepK = 128 / sizeof(W);
  // FP8 sums are kept twice: those of a step, and all of them with scales.
  static constexpr int kWeightRows = sizeof(W) == 1 ? 128 : 256;
  static constexpr int kSlots = sizeof(W) == 1 ? 6 : 4;
  static constexpr int kOutputs = kGated ? kWeightRows / 2 : kWeightRows;
  static constexpr int kXBytes = kTileRows * 128;
  static constexpr int kWeightBytes = kWeightRows * 128;
  static constexpr int kSlotBytes = kXBytes + kWeightBytes;
  static constexpr int kStageRow = 256;  // bytes of a row of the outgoing tile
  static constexpr int kStageBytes = kTileConsumerWarps * 16 * kStageRow;
  static constexpr int kBarrierBytes = 2 * kSlots * 8;
  static constexpr int kSharedBytes = kSlots * kSlotBytes + kStageBytes + kBarrierBytes + 1024;
};

// The value of lane 0: the compiler then knows that a warp does not part over it.
__device__ __forceinline__ int Uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

struct TileItem {
  RowTile tile;
  int first;  // output
  bool of_shared;
};

template <typename Shape>
struct TileItems {
  const TileArgs& a;
  int shared_tiles, shared_items, tiles_n, count;

  __device__ static int CeilDiv(int x, int y) { return (x + y - 1) / y; }
  __device__ explicit TileItems(const TileArgs& args)
      : a(args), shared_tiles(CeilDiv(args.shared.rows, kTileRows)),
        shared_items(shared_tiles * CeilDiv(args.shared.n, Shape::kOutputs)),
        tiles_n(CeilDiv(args.experts.n, Shape::kOutputs)),
        count(Uniform(shared_items + __ldcg(args.experts.num_tiles) * tiles_n)) {}

  // Items behind the last one have no rows.
  __device__ __forceinline__ TileItem At(int item) const {
    if (item >= count) return {{0, 0, 0}, 0, false};
    if (item < shared_items) {
      const int first = item % shared_tiles * kTileRows;
      return {{0, first, min(kTileRows, a.shared.rows - first)},
              item / shared_tiles * Shape::kOutputs, true};
    }
    const int i = item - shared_items;
    const RowTile* tile = a.experts.tiles + i / tiles_n;
    return {{Uniform(__ldcg(&tile->expert)), Uniform(__ldcg(&tile->first)),
             Uniform(__ldcg(&tile->count))},
            i % tiles_n * Shape::kOutputs, false};
  }
  __device__ __forceinline__ const TilePart& part(const TileItem& item) const {
    return item.of_shared ? a.shared : a.experts;
  }
  __device__ __forceinline__ int Steps(const TileItem& item) const {
    return CeilDiv(static_cast<int>(part(item).w.k), Shape::kStepK);
  }
};

// Shared memory: the slots, the outgoing tile, then for each slot the barriers "full" (every producer
// thread for its rows, and one for the weights) and "empty" (every consumer warp).
template <typename Shape>
struct TileMemory {
  uint32_t base;

  __device__ explicit TileMemory(const void* memory) : base((SharedAddress(memory) + 1023) / 1024 * 1024) {}
  __device__ uint32_t x(int slot) const { return base + slot * Shape::kSlotBytes; }
  __device__ uint32_t weights(int slot) const { return x(slot) + Shape::kXBytes; }
  __device__ uint32_t stage(int warp) const {
    return base + Shape::kSlots * Shape::kSlotBytes + warp * 16 * Shape::kStageRow;
  }
  __device__ uint32_t full(int slot) const {
    return base + Shape::kSlots * Shape::kSlotBytes + Shape::kStageBytes + slot * 16;
  }
  __device__ uint32_t empty(int slot) const { return full(slot) + 8; }
  __device__ void InitBarriers() const {
    for (int i = 0; i < Shape::kSlots; ++i) {
      BarrierInit(full(i), kTileProducers + 1);
      BarrierInit(empty(i), kTileConsumerWarps);
    }
    FenceBarrierInit();
  }
};

// A position in the ring; parity of the slot's current round.
template <int kSlots>
struct TileSlot {
  int index = 0;
  int parity = 0;
  __device__ __forceinline__ void Next() {
    if (++index == kSlots) {
      index = 0;
      parity ^= 1;
    }
  }
};

// Where a producer thread reads: chunk threadIdx.x % 8 of rows threadIdx.x / 8 + 16 i.
struct TileGather {
  static constexpr int kRows = kTileRows / 16;
  const char* x;
  uint32_t offset[kRows];  // bytes
  int valid;               // bit i
  int bytes;               // of a row

  __device__ __forceinline__ void Load(const TilePart& p, const RowTile& tile, int element) {
    x = static_cast<const char*>(p.x);
    bytes = p.k * element;
    valid = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = static_cast<int>(threadIdx.x) / 8 + i * 16;
      const bool inside = r < tile.count;
      const int from = tile.first + (inside ? r : 0);
      const int row = p.source == nullptr ? from : __ldcg(p.source + from) / p.source_div;
      offset[i] = static_cast<uint32_t>(row) * static_cast<uint32_t>(p.x_stride * element);
      valid |= static_cast<int>(inside) << i;
    }
  }
  __device__ __forceinline__ void Copy(uint32_t to, int step) const {
    const int chunk = threadIdx.x % 8, at = step * 128 + chunk * 16;
    const bool inside = at < bytes;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if ((valid >> i & 1) == 0) continue;
      const int r = static_cast<int>(threadIdx.x) / 8 + i * 16;
      CopyAsync16(to + r * 128 + (chunk ^ r % 8) * 16, x + offset[i] + (inside ? at : 0), inside);
    }
  }
};

template <typename Shape>
__device__ __forceinline__ void Produce(const TileArgs& a, const TileMemory<Shape>& memory) {
  const TileItems<Shape> items(a);
  TileSlot<Shape::kSlots> slot, announced;
  int pending = 0;  // steps whose rows are not announced
  TileItem next = items.At(blockIdx.x);
  for (int i = blockIdx.x; i < items.count; i += gridDim.x) {
    const TileItem item = next;
    next = items.At(i + gridDim.x);
    const TilePart& p = items.part(item);
    const CUtensorMap* map = item.of_shared ? &a.shared_map : &a.experts_map;
    const int row = item.tile.expert * static_cast<int>(p.w.n) + item.first;
    const int second = row + (Shape::kIsGated ? p.n : Shape::kWeightRows / 2);
    TileGather gather;
    gather.Load(p, item.tile, sizeof(typename Shape::Weight));
    const int steps = items.Steps(item);
    for (int step = 0; step < steps; ++step) {
      AwaitBarrier(memory.empty(slot.index), slot.parity ^ 1);
      if (threadIdx.x == 0) {
        const uint32_t full = memory.full(slot.index), to = memory.weights(slot.index);
        ArriveExpecting(full, Shape::kWeightBytes);
        CopyTile(to, map, step * 64, row, full);
        CopyTile(to + Shape::kWeightBytes / 2, map, step * 64, second, full);
      }
      gather.Copy(memory.x(slot.index), step);
      CommitCopies();
      slot.Next();
      if (++pending > kTileLag) {
        AwaitCopies<kTileLag>();
        FenceForProducts();
        Arrive(memory.full(announced.index));
        announced.Next();
        --pending;
      }
    }
  }
  AwaitCopies<0>();
  FenceForProducts();
  for (; pending > 0; --pending) {
    Arrive(memory.full(announced.index));
    announced.Next();
  }
}

// kColumns columns of a warp's 16 rows, from sums by way of shared memory, 16 bytes a store.
// pair(j, h): columns 8 j + 2 q and the next of row g + 8 h.
template <int kColumns, typename PairAt>
__device__ __forceinline__ void StoreColumns(uint32_t stage, const TilePart& p, const RowTile& tile,
                                             int row0, int column0, int limit, PairAt pair) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  __syncwarp();
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      StoreShared4(stage + (g + 8 * h) * 256 + (j ^ g) * 16 + q * 4, pair(j, h));
    }
  }
  __syncwarp();
  constexpr int kChunks = kColumns / 8;  // of a row
#pragma unroll 4
  for (int i = lane; i < 16 * kChunks; i += 32) {
    const int r = i / kChunks, chunk = i % kChunks, column = column0 + chunk * 8;
    if (row0 + r >= tile.count || column >= limit) continue;
    const uint4 v = LoadShared16(stage + r * 256 + (chunk ^ r % 8) * 16);
    bf16* row = p.out + static_cast<int64_t>(tile.first + row0 + r) * p.out_stride;
    *reinterpret_cast<uint4*>(row + column) = v;
  }
}

__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// Sums of a consumer thread as wgmma.cuh lays them out.
template <typename Shape>
using TileSums = float[Shape::kWeightRows / 2];

template <typename Shape>
__device__ __forceinline__ void StoreTile(const TileMemory<Shape>& memory, const TilePart& p,
                                          const TileItem& item, const TileSums<Shape>& d) {
  const int warp = static_cast<int>(threadIdx.x) / 32 - 4, row0 = warp * 16, q = threadIdx.x % 4;
  constexpr int kColumns = Shape::kOutputs < 128 ? Shape::kOutputs : 128;
  if (row0 >= item.tile.count) return;
#pragma unroll
  for (int part = 0; part < Shape::kOutputs / kColumns; ++part) {
    const int column0 = item.first + part * 128;
    StoreColumns<kColumns>(
        memory.stage(warp), p, item.tile, row0, column0, Shape::kIsGated ? p.out_stride : p.n,
        [&](int j, int h) {
          const int at = part * 64 + 4 * j + 2 * h;
          if constexpr (!Shape::kIsGated) return PackBf16(d[at], d[at + 1]);
          constexpr int kUp = Shape::kWeightRows / 4;
          const int column = column0 + 8 * j + 2 * q;
          const float first = SiluMul(d[at], d[at + kUp]);
          const float second = SiluMul(d[at + 1], d[at + 1 + kUp]);
          return PackBf16(column < p.n ? first : 0, column + 1 < p.n ? second : 0);
        });
  }
}

// A warpgroup without rows only hands the slots on.
template <typename Shape>
__device__ __forceinline__ void PassItem(const TileMemory<Shape>& memory, int steps,
                                         TileSlot<Shape::kSlots>& slot) {
  for (int step = 0; step < steps; ++step) {
    AwaitBarrier(memory.full(slot.index), slot.parity);
    if (threadIdx.x % 32 == 0) Arrive(memory.empty(slot.index));
    slot.Next();
  }
}

// multiply(memory, part, item, group, slot, sums) makes the sums of one item.
template <typename Shape, typename Multiply>
__device__ __forceinline__ void Consume(const TileArgs& a, const TileMemory<Shape>& memory,
                                        Multiply multiply) {
  const TileItems<Shape> items(a);
  const int group = Uniform(static_cast<int>(threadIdx.x) / 128) - 1;
  TileSlot<Shape::kSlots> slot;
  TileItem next = items.At(blockIdx.x);
  for (int i = blockIdx.x; i < items.count; i += gridDim.x) {
    const TileItem item = next;
    next = items.At(i + gridDim.x);
    if (group * 64 >= item.tile.count) {
      PassItem(memory, items.Steps(item), slot);
      continue;
    }
    TileSums<Shape> d;
    multiply(items.part(item), item, items.Steps(item), group, slot, d);
    StoreTile(memory, items.part(item), item, d);
  }
}

template <typename Shape>
__device__ __forceinline__ TileMemory<Shape> BeginTiles(const TileArgs& a, char* shared) {
  const TileMemory<Shape> memory(shared);
  if (threadIdx.x == 0) {
    memory.InitBarriers();
    PrefetchMap(&a.shared_map);
    PrefetchMap(&a.experts_map);
  }
  __syncthreads();
  WaitForPrevious();
  AllowNext();
  return memory;
}

template <typename Shape>
void LaunchTileKernel(void (*kernel)(TileArgs), TileArgs& args, DType dtype, int max_tiles,
                      CudaContext& context) {
  constexpr int kBox = Shape::kWeightRows / 2;
  args.experts_map = WeightMap(args.experts, dtype, kBox);
  args.shared_map = args.shared.n == 0 ? args.experts_map : WeightMap(args.shared, dtype, kBox);
  const auto tiles = [](int n, int of) { return (n + of - 1) / of; };
  const int64_t items =
      int64_t{tiles(args.shared.rows, kTileRows)} * tiles(args.shared.n, Shape::kOutputs) +
      int64_t{max_tiles} * tiles(args.experts.n, Shape::kOutputs);
  const auto blocks = static_cast<unsigned>(std::clamp<int64_t>(items, 1, context.sm_count));
  Launch(kernel, blocks, kTileThreads, Shape::kSharedBytes, context, args);
}

}  // namespace hadal::cuda
