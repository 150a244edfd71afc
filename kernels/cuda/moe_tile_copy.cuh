#pragma once

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/moe_tile_items.cuh"

namespace hadal::cuda {

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

// Shared memory: the slots, the outgoing tile, then for each slot the barriers "full" (every
// producer thread for its rows, and one for the weights) and "empty" (every consumer warp of the
// cluster, since weights come to both blocks at once), and the scales.
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
  // By every consumer thread, before products read the slot: its rows are ordinary writes.
  __device__ __forceinline__ void AwaitFull(const TileSlot<Shape::kSlots>& slot) const {
    AwaitBarrier(full(slot.index), slot.parity);
    FenceForProducts();
  }
  // By one lane of a consumer warp, which has read all of the slot.
  __device__ __forceinline__ void HandBack(int slot) const {
    Arrive(empty(slot));
    if constexpr (Shape::kBlocks == 2) ArriveAt(empty(slot), 1 - TileItems<Shape>::Rank());
  }
  __device__ uint32_t scales(int slot) const {
    return full(Shape::kSlots) + slot * Shape::kScaleBytes;
  }
  __device__ void InitBarriers() const {
    for (int i = 0; i < Shape::kSlots; ++i) {
      BarrierInit(full(i), kTileProducers + 1);
      BarrierInit(empty(i), kTileConsumerWarps * Shape::kBlocks);
    }
    FenceBarrierInit();
  }
};

// Which rows of x an item reads. A thread copies chunk threadIdx.x % 8 of rows Row() + 16 i, and of
// FP8 the scales of row threadIdx.x and of half threadIdx.x of the weight rows.
struct TileSource {
  static constexpr int kRows = kTileRows / 16;
  int row[kRows];
  int scale_row;

  __device__ static int Row() { return static_cast<int>(threadIdx.x) / 8; }
  // Starts the loads; nothing waits for them.
  __device__ __forceinline__ void Fetch(const TilePart& p, const RowTile& tile) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) row[i] = At(p, tile, Row() + i * 16);
    scale_row = At(p, tile, static_cast<int>(threadIdx.x));
  }

 private:
  // Rows behind the last one read the first.
  __device__ __forceinline__ static int At(const TilePart& p, const RowTile& tile, int r) {
    const int from = tile.first + (r < tile.count ? r : 0);
    return p.source == nullptr ? from : __ldcg(p.source + from);
  }
};

// Where a producer thread reads.
struct TileGather {
  static constexpr int kRows = TileSource::kRows;
  const char* x;
  uint32_t offset[kRows];  // bytes
  int rows_left;           // from the thread's first row on
  int bytes;               // of a row
  const float* x_scale = nullptr;  // null: none to copy
  const float* w_scale = nullptr;

  __device__ __forceinline__ static int RowOf(const TilePart& p, int source) {
    return p.source == nullptr ? source : source / p.source_div;
  }
  __device__ __forceinline__ void Place(const TilePart& p, const RowTile& tile,
                                        const TileSource& source, int element) {
    x = static_cast<const char*>(p.x);
    bytes = p.k * element;
    rows_left = tile.count - TileSource::Row();
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      offset[i] = static_cast<uint32_t>(RowOf(p, source.row[i])) *
                  static_cast<uint32_t>(p.x_stride * element);
    }
  }
  template <typename Shape>
  __device__ __forceinline__ void PlaceScales(const TilePart& p, const TileItem& item,
                                              const TileSource& source) {
    const int t = static_cast<int>(threadIdx.x);
    if (t < item.tile.count) {
      x_scale = p.x_scale + static_cast<int64_t>(RowOf(p, source.scale_row)) * p.x_blocks;
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
    const int chunk = threadIdx.x % 8, row = TileSource::Row(), at = step * 128 + chunk * 16;
    const bool inside = at < bytes;
    const char* from = x + (inside ? at : 0);
    to += row * 128 + (chunk ^ row % 8) * 16;  // 16 rows further the same chunk
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i * 16 < rows_left) CopyAsync16(to + i * 16 * 128, from + offset[i], inside);
    }
  }
};

// The step of an item at which the rows of the next are looked up.
constexpr int kLookAhead = 4;

// The two halves of a step's weight rows: gate and up, or outputs and those behind them.
template <typename Shape>
__device__ __forceinline__ void CopyWeights(const TileArgs& a, const TileMemory<Shape>& memory,
                                            const TileItem& item, const CUtensorMap* map, int step,
                                            int slot) {
  const TilePart& p = item.of_shared ? a.shared : a.experts;
  const int first = item.tile.expert * static_cast<int>(p.w.n) + item.first;
  const int second = first + (Shape::kIsGated ? p.n : Shape::kWeightRows / 2);
  const uint32_t full = memory.full(slot), to = memory.weights(slot);
  const uint32_t to_second = to + Shape::kWeightBytes / 2;
  if (Shape::kBlocks == 2 && item.together()) {
    const bool lower = TileItems<Shape>::Rank() == 0;
    CopyTileToBoth(lower ? to : to_second, map, step * 64, lower ? first : second, full);
  } else {
    CopyTileOnce(to, map, step * 64, first, full);
    CopyTileOnce(to_second, map, step * 64, second, full);
  }
}

// One thread's part of a step: what the slot is to hold, and its weights.
template <typename Shape>
__device__ __forceinline__ void BeginStep(const TileArgs& a, const TileMemory<Shape>& memory,
                                          const TileItem& item, int step, int slot) {
  ArriveExpecting(memory.full(slot), Shape::kWeightBytes);
  CopyWeights(a, memory, item, item.of_shared ? &a.shared_map : &a.experts_map, step, slot);
}

// Begins the first steps of the first item, whose slots are empty. Returns how many.
template <typename Shape>
__device__ __forceinline__ int BeginEarly(const TileArgs& a, const TileMemory<Shape>& memory) {
  const TileItems<Shape> items(a);
  if (items.First() >= items.count) return 0;
  const TileItem item = items.Settle(items.At(items.First()));
  const int steps = min(Shape::kSlots, items.Steps(item));
  for (int step = 0; step < steps && threadIdx.x == 0; ++step) {
    BeginStep(a, memory, item, step, step);
  }
  return steps;
}

template <typename Shape>
__device__ __forceinline__ void Produce(const TileArgs& a, const TileMemory<Shape>& memory) {
  int begun = a.tiles_known ? BeginEarly(a, memory) : 0;
  WaitForPrevious();
  const TileItems<Shape> items(a);
  TileSlot<Shape::kSlots> slot;
  if (items.First() >= items.count) return;
  TileItem next = items.At(items.First());
  TileSource source;
  source.Fetch(items.part(next), next.tile);
  for (int i = items.First(); i < items.count; i += items.Stride()) {
    const TileItem item = items.Settle(next);
    const TilePart& p = items.part(item);
    TileGather gather;
    gather.Place(p, item.tile, source, sizeof(typename Shape::Weight));
    if constexpr (Shape::kScaleBytes > 0) gather.PlaceScales<Shape>(p, item, source);
    const int steps = items.Steps(item);
    for (int step = 0; step < steps; ++step) {
      AwaitBarrier(memory.empty(slot.index), slot.parity ^ 1);
      if (--begun < 0 && threadIdx.x == 0) BeginStep(a, memory, item, step, slot.index);
      gather.Copy(memory.x(slot.index), step);
      if constexpr (Shape::kScaleBytes > 0) gather.CopyScales(memory.scales(slot.index), step);
      ArriveWhenCopied(memory.full(slot.index));
      slot.Next();
      // Two trips to memory, one behind the other, that the slots on their way hide.
      if (step == min(kLookAhead, steps - 1)) {
        next = items.At(i + items.Stride());
        source.Fetch(items.part(next), next.tile);
      }
    }
  }
}

}  // namespace hadal::cuda
