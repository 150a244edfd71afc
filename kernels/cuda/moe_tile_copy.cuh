#pragma once

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/moe_mma.cuh"
#include "kernels/cuda/moe_tile.h"

namespace hadal::cuda {

// Grouped products of many rows per expert. A block makes 128 rows by kWeightRows weight rows of
// one expert at a time: warpgroup 0 fetches (rows one by one, for they are gathered; weights by
// tensor copies), warpgroups 1 and 2 multiply 64 rows each.

inline constexpr int kTileThreads = 384;
inline constexpr int kTileProducers = 128;
inline constexpr int kTileConsumerWarps = 8;

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
  // Steps whose rows may be under way when the producer announces an older one.
  static constexpr int kLag = sizeof(W) == 1 ? 3 : 2;
  static constexpr int kStageColumns = sizeof(W) == 1 ? 64 : 128;  // that go out at once
  static constexpr int kStageRow = 2 * kStageColumns;              // bytes
  static constexpr int kStageBytes = kTileConsumerWarps * 16 * kStageRow;
  static constexpr int kBarrierBytes = 2 * kSlots * 8;
  // Of a slot: of its rows, then of the two halves of the weight rows.
  static constexpr int kScaleBytes = sizeof(W) == 1 ? (kTileRows + 4) * 4 : 0;
  static constexpr int kSharedBytes =
      kSlots * (kSlotBytes + kScaleBytes) + kStageBytes + kBarrierBytes + 1024;
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
      : a(args),
        shared_tiles(CeilDiv(args.shared.rows, kTileRows)),
        shared_items(shared_tiles * CeilDiv(args.shared.n, Shape::kOutputs)),
        tiles_n(CeilDiv(args.experts.n, Shape::kOutputs)),
        count(Uniform(shared_items + __ldcg(args.experts.num_tiles) * tiles_n)) {}

  // Items behind the last one have no rows.
  __device__ __forceinline__ TileItem At(int item) const {
    if (item >= count) return {{0, 0, 0}, 0, false};
    if (item < shared_items) {
      const int first = item % shared_tiles * kTileRows;
      return {{0, first, min(kTileRows, a.shared.rows - first)},
              item / shared_tiles * Shape::kOutputs,
              true};
    }
    const int i = item - shared_items;
    const RowTile* tile = a.experts.tiles + i / tiles_n;
    return {{Uniform(__ldcg(&tile->expert)), Uniform(__ldcg(&tile->first)),
             Uniform(__ldcg(&tile->count))},
            i % tiles_n * Shape::kOutputs,
            false};
  }
  __device__ __forceinline__ const TilePart& part(const TileItem& item) const {
    return item.of_shared ? a.shared : a.experts;
  }
  __device__ __forceinline__ int Steps(const TileItem& item) const {
    return CeilDiv(static_cast<int>(part(item).w.k), Shape::kStepK);
  }
};

// Shared memory: the slots, the outgoing tile, then for each slot the barriers "full" (every
// producer thread for its rows, and one for the weights) and "empty" (every consumer warp), and the
// scales.
template <typename Shape>
struct TileMemory {
  uint32_t base;

  __device__ explicit TileMemory(const void* memory)
      : base((SharedAddress(memory) + 1023) / 1024 * 1024) {}
  __device__ uint32_t x(int slot) const { return base + slot * Shape::kSlotBytes; }
  __device__ uint32_t weights(int slot) const { return x(slot) + Shape::kXBytes; }
  __device__ uint32_t stage(int warp) const {
    return base + Shape::kSlots * Shape::kSlotBytes + warp * 16 * Shape::kStageRow;
  }
  __device__ uint32_t full(int slot) const {
    return base + Shape::kSlots * Shape::kSlotBytes + Shape::kStageBytes + slot * 16;
  }
  __device__ uint32_t empty(int slot) const { return full(slot) + 8; }
  __device__ uint32_t scales(int slot) const {
    return full(Shape::kSlots) + slot * Shape::kScaleBytes;
  }
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

// Where a producer thread reads: chunk threadIdx.x % 8 of rows threadIdx.x / 8 + 16 i; of FP8 also
// the scales of row threadIdx.x, and of half threadIdx.x of the weight rows.
struct TileGather {
  static constexpr int kRows = kTileRows / 16;
  const char* x;
  uint32_t offset[kRows];  // bytes
  int valid;               // bit i
  int bytes;               // of a row
  const float* x_scale = nullptr;  // null: none to copy
  const float* w_scale = nullptr;

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
  template <typename Shape>
  __device__ __forceinline__ void LoadScales(const TilePart& p, const TileItem& item) {
    const int t = static_cast<int>(threadIdx.x);
    if (t < item.tile.count) {
      const int from = item.tile.first + t;
      const int row = p.source == nullptr ? from : __ldcg(p.source + from) / p.source_div;
      x_scale = p.x_scale + static_cast<int64_t>(row) * p.x_blocks;
    }
    if (t < 2) {
      const int output = item.first + t * (Shape::kIsGated ? p.n : Shape::kWeightRows / 2);
      w_scale = p.w.scales(item.tile.expert, output < p.w.n ? output : item.first);
    }
  }
  __device__ __forceinline__ void CopyScales(uint32_t to, int step) const {
    if (x_scale != nullptr) CopyAsync4(to + threadIdx.x * 4, x_scale + step);
    if (w_scale != nullptr) CopyAsync4(to + (kTileRows + threadIdx.x) * 4, w_scale + step);
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
    if constexpr (Shape::kScaleBytes > 0) gather.LoadScales<Shape>(p, item);
    const int steps = items.Steps(item);
    for (int step = 0; step < steps; ++step) {
      AwaitBarrier(memory.empty(slot.index), slot.parity ^ 1);
      if (threadIdx.x == 0) {
        const uint32_t full = memory.full(slot.index), to = memory.weights(slot.index);
        ArriveExpecting(full, Shape::kWeightBytes);
        const uint32_t to_second = to + Shape::kWeightBytes / 2;
        if (a.read_once) {
          CopyTileOnce(to, map, step * 64, row, full);
          CopyTileOnce(to_second, map, step * 64, second, full);
        } else {
          CopyTile(to, map, step * 64, row, full);
          CopyTile(to_second, map, step * 64, second, full);
        }
      }
      gather.Copy(memory.x(slot.index), step);
      if constexpr (Shape::kScaleBytes > 0) gather.CopyScales(memory.scales(slot.index), step);
      CommitCopies();
      slot.Next();
      if (++pending > Shape::kLag) {
        AwaitCopies<Shape::kLag>();
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

}  // namespace hadal::cuda
