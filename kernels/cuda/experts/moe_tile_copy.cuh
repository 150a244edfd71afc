#pragma once

#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/device/hopper.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/experts/moe_tile_memory.cuh"

namespace hadal::cuda {

// Where a producer thread reads.
template <typename Shape>
struct TileGather {
  using Source = TileSource<Shape>;
  static constexpr int kRows = Source::kRows, kElement = sizeof(typename Shape::Weight);
  const char* x;
  uint32_t offset[kRows];          // bytes
  int rows_left;                   // from the thread's first row on
  int bytes;                       // of a row
  const float* x_scale = nullptr;  // null: none to copy
  const float* w_scale = nullptr;

  __device__ __forceinline__ void Place(const TilePart& p, const RowTile& tile,
                                        const Source& source) {
    x = static_cast<const char*>(p.x);
    bytes = p.k * kElement;
    rows_left = tile.count - Source::Row();
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      offset[i] =
          static_cast<uint32_t>(source.row[i]) * static_cast<uint32_t>(p.x_stride * kElement);
    }
  }
  __device__ __forceinline__ void PlaceScales(const TilePart& p, const TileItem& item,
                                              const Source& source) {
    const int t = static_cast<int>(threadIdx.x);
    if (t < item.tile.count) {
      x_scale = p.x_scale + static_cast<int64_t>(source.scale_row) * p.x_blocks;
    }
    if (t < 2) {
      const int output = item.first + t * (Shape::kIsGated ? p.n : Shape::kWeightRows / 2);
      w_scale = p.w.scales(item.tile.expert, output < p.w.n ? output : item.first);
    }
  }
  __device__ __forceinline__ void CopyScales(uint32_t to, int step) const {
    if (x_scale != nullptr) CopyAsync4(to + threadIdx.x * 4, x_scale + step);
    if (w_scale != nullptr) CopyAsync4(to + (Shape::kRows + threadIdx.x) * 4, w_scale + step);
  }
  __device__ __forceinline__ void Copy(uint32_t to, int step) const {
    const int chunk = threadIdx.x % 8, row = Source::Row(), at = step * 128 + chunk * 16;
    const bool inside = at < bytes;
    const char* from = x + (inside ? at : 0);
    to += row * 128 + (chunk ^ row % 8) * 16;  // 16 rows further the same chunk
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i * 16 < rows_left) CopyAsync16(to + i * 16 * 128, from + offset[i], inside);
    }
  }
};

// The steps of an item at which the next one is looked up, and then its rows: two trips to memory,
// one behind the other, that nobody waits for.
constexpr int kLookAhead = 1;
constexpr int kRowsAhead = 5;

// Where box `box` of an item's weights begins, as rows of all matrices: outputs one below the
// other; or gate rows and their up rows in turn.
template <typename Shape>
__device__ __forceinline__ int WeightRow(const TilePart& p, const TileItem& item, int box) {
  const int first = item.tile.expert * static_cast<int>(p.w.n) + item.first;
  if constexpr (Shape::kIsGated) return first + box / 2 * Shape::kBoxRows + box % 2 * p.n;
  return first + box * Shape::kBoxRows;
}

template <typename Shape>
__device__ __forceinline__ void CopyWeights(const TileArgs& a, const TileMemory<Shape>& memory,
                                            const TileItem& item, const CUtensorMap* map, int step,
                                            int slot) {
  const TilePart& p = item.of_shared ? a.shared : a.experts;
  const uint32_t full = memory.full(slot);
  const auto to = [&](int box) { return memory.weights(slot) + box * Shape::kBoxRows * 128; };
  if (Shape::kBlocks == 2 && item.together()) {
    const int box = TileItems<Shape>::Rank();
    return CopyTileToBoth(to(box), map, step * 64, WeightRow<Shape>(p, item, box), full);
  }
#pragma unroll
  for (int box = 0; box < Shape::kBoxes; ++box) {
    CopyTileOnce(to(box), map, step * 64, WeightRow<Shape>(p, item, box), full);
  }
}

// One thread's part of a step: what the slot is to hold, and its weights.
template <typename Shape>
__device__ __forceinline__ void BeginStep(const TileArgs& a, const TileMemory<Shape>& memory,
                                          const TileItem& item, int step, int slot) {
  if (step == 0) memory.NoteTile(slot, item.tile);
  ArriveExpecting(memory.full(slot), Shape::kWeightBytes);
  CopyWeights(a, memory, item, item.of_shared ? &a.shared_map : &a.experts_map, step, slot);
}

// Begins the first steps of an item, whose slots are empty, by one thread. Returns how many.
template <typename Shape>
__device__ __forceinline__ int BeginItem(const TileArgs& a, const TileMemory<Shape>& memory,
                                         const TileItem& item, int steps) {
  steps = min(Shape::kSlots, steps);
  for (int step = 0; step < steps && threadIdx.x == 0; ++step) {
    BeginStep(a, memory, item, step, step);
  }
  return steps;
}

// Of the first steps of an item that is likely to be the block's first, by one thread: brings the
// weights to the second-level cache.
template <typename Shape>
__device__ __forceinline__ void PrefetchItem(const TileArgs& a, const TileItem& item, int steps) {
  if (threadIdx.x != 0 || item.tile.count == 0) return;
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int box = 0; box < Shape::kBoxes; ++box) {
      PrefetchTile(&a.experts_map, step * 64, WeightRow<Shape>(a.experts, item, box));
    }
  }
}

// What needs no wait: weights of the first item where it is known, or a guess. Returns the steps
// begun.
template <typename Shape>
__device__ __forceinline__ int BeginEarly(const TileArgs& a, const TileMemory<Shape>& memory) {
  TileItems<Shape> items(a);
  if (a.tiles_known) items.CountTiles();
  const int i = items.First();
  if (i < items.count) {
    const TileItem item = items.Load(i);
    return BeginItem(a, memory, item, items.Steps(item));
  }
  if (Shape::kBlocks == 1 && !a.tiles_known) {
    const TileItem guess = items.Guess(i);
    PrefetchItem<Shape>(a, guess, min(Shape::kSlots, items.Steps(guess)));
  }
  return 0;
}

template <typename Shape>
__device__ __forceinline__ void Produce(const TileArgs& a, const TileMemory<Shape>& memory) {
  int begun = BeginEarly(a, memory);
  WaitForPrevious();
  TileItems<Shape> items(a);
  TileItem item = items.CountAndFirst();
  if (items.First() >= items.count) return;
  if (begun == 0) begun = BeginItem(a, memory, item, items.Steps(item));
  TileSlot<Shape::kSlots> slot;
  TileLookup<Shape> lookup{memory};
  TileSource<Shape> source;
  source.Load(items.part(item), item.tile);
  for (int i = items.First(); i < items.count; i = items.After(i)) {
    TileGather<Shape> gather;
    gather.Place(items.part(item), item.tile, source);
    if constexpr (Shape::kScaleBytes > 0) gather.PlaceScales(items.part(item), item, source);
    const int steps = items.Steps(item);
    TileItem next;
    for (int step = 0; step < steps; ++step) {
      AwaitBarrier(memory.empty(slot.index), slot.parity ^ 1);
      if (--begun < 0 && threadIdx.x == 0) BeginStep(a, memory, item, step, slot.index);
      gather.Copy(memory.x(slot.index), step);
      if constexpr (Shape::kScaleBytes > 0) gather.CopyScales(memory.scales(slot.index), step);
      ArriveWhenCopied(memory.full(slot.index));
      slot.Next();
      if (step == min(kLookAhead, steps - 1)) lookup.BeginTile(items, items.After(i));
      if (step == min(kRowsAhead, steps - 1)) {
        next = lookup.AwaitTile(items, items.After(i));
        lookup.BeginRows(items.part(next), next.tile);
      }
    }
    lookup.AwaitRows(items.part(next), next.tile, source);
    item = next;
  }
}

}  // namespace hadal::cuda
