#pragma once

#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/experts/moe_tile_items.cuh"

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
// cluster, since weights come to both blocks at once), the scales, the tile of the item that begins
// in the slot, and what TileLookup needs.
template <typename Shape>
struct TileMemory {
  uint32_t base;

  __device__ explicit TileMemory(const void* memory)
      : base((SharedAddress(memory) + 1023) / 1024 * 1024) {}
  __device__ uint32_t x(int slot) const { return base + slot * Shape::kSlotBytes; }
  __device__ uint32_t weights(int slot) const { return x(slot) + Shape::kXBytes; }
  // What warpgroup `group` multiplies.
  __device__ uint32_t group_x(int slot, int group) const {
    return x(slot) + (Shape::kRows == 64 ? 0 : group * 64 * 128);
  }
  __device__ uint32_t group_weights(int slot, int group) const {
    return weights(slot) + (Shape::kRows == 64 ? group * Shape::kGroupRows * 128 : 0);
  }
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
    FenceAsync();
  }
  // By one lane of a consumer warp, which has read all of the slot.
  __device__ __forceinline__ void HandBack(int slot) const {
    Arrive(empty(slot));
    if constexpr (Shape::kBlocks == 2) ArriveAt(empty(slot), 1 - TileItems<Shape>::Rank());
  }
  __device__ uint32_t scales(int slot) const {
    return full(Shape::kSlots) + slot * Shape::kScaleBytes;
  }
  __device__ uint32_t tile(int slot) const { return scales(Shape::kSlots) + slot * 16; }
  __device__ uint32_t lookup() const { return tile(Shape::kSlots); }
  __device__ uint32_t looked_up() const { return lookup() + 16; }
  __device__ uint32_t lookup_rows() const { return lookup() + 32; }
  __device__ __forceinline__ void NoteTile(int slot, const RowTile& tile_of_item) const {
    StoreShared4(tile(slot), tile_of_item.expert);
    StoreShared4(tile(slot) + 4, tile_of_item.first);
    StoreShared4(tile(slot) + 8, tile_of_item.count);
  }
  // By consumers; the item begins in that slot.
  __device__ __forceinline__ RowTile AwaitTile(const TileSlot<Shape::kSlots>& slot) const {
    AwaitBarrier(full(slot.index), slot.parity);
    const uint4 words = LoadShared16(tile(slot.index));
    return {Uniform(words.x), Uniform(words.y), Uniform(words.z)};
  }
  __device__ void InitBarriers() const {
    BarrierInit(looked_up(), kTileProducers);
    for (int i = 0; i < Shape::kSlots; ++i) {
      BarrierInit(full(i), kTileProducers + 1);
      BarrierInit(empty(i), kTileConsumerWarps * Shape::kBlocks);
    }
    FenceBarrierInit();
  }
};

// Which rows of x an item reads. A thread copies chunk threadIdx.x % 8 of rows Row() + 16 i, and of
// FP8 the scales of row threadIdx.x and of half threadIdx.x of the weight rows.
template <typename Shape>
struct TileSource {
  static constexpr int kRows = Shape::kRows / 16;
  int row[kRows];
  int scale_row;

  __device__ static int Row() { return static_cast<int>(threadIdx.x) / 8; }
  // row_of(r): of row r of the tile.
  template <typename RowOf>
  __device__ __forceinline__ void Take(const RowTile& tile, RowOf row_of) {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      row[i] = Row() + i * 16 < tile.count ? row_of(Row() + i * 16) : 0;
    const int own = static_cast<int>(threadIdx.x);
    scale_row = own < tile.count ? row_of(own) : 0;
  }
  // Waits for memory.
  __device__ __forceinline__ void Load(const TilePart& p, const RowTile& tile) {
    Take(tile, [&](int r) {
      return p.source == nullptr ? tile.first + r : __ldcg(p.source + tile.first + r);
    });
  }
};

// Looks up a block's next item and then its rows by way of shared memory: a register that memory is
// to fill would be waited for at the next barrier, the producers' next step.
template <typename Shape>
struct TileLookup {
  const TileMemory<Shape>& memory;
  int parity = 0;

  __device__ __forceinline__ void BeginTile(const TileItems<Shape>& items, int item) {
    const int word = static_cast<int>(threadIdx.x);
    if (word < 4 && items.OfExperts(item)) {
      const bool other = word == 3;
      const auto* tile = reinterpret_cast<const int32_t*>(
          items.Tile(item, other ? Shape::kBlocks - 1 - items.Rank() : items.Rank()));
      CopyAsync4(memory.lookup() + word * 4, tile + (other ? 0 : word));
    }
    ArriveWhenCopied(memory.looked_up());
  }
  __device__ __forceinline__ TileItem AwaitTile(const TileItems<Shape>& items, int item) {
    Await();
    const uint4 words = LoadShared16(memory.lookup());
    return items.Item(item, {Uniform(words.x), Uniform(words.y), Uniform(words.z)},
                      Uniform(words.w));
  }
  __device__ __forceinline__ void BeginRows(const TilePart& p, const RowTile& tile) {
    const int r = static_cast<int>(threadIdx.x);
    if (p.source != nullptr && r < tile.count) {
      CopyAsync4(memory.lookup_rows() + r * 4, p.source + tile.first + r);
    }
    ArriveWhenCopied(memory.looked_up());
  }
  __device__ __forceinline__ void AwaitRows(const TilePart& p, const RowTile& tile,
                                            TileSource<Shape>& source) {
    Await();
    source.Take(tile, [&](int r) {
      return p.source == nullptr ? tile.first + r
                                 : static_cast<int>(LoadShared4(memory.lookup_rows() + r * 4));
    });
  }

 private:
  __device__ __forceinline__ void Await() {
    AwaitBarrier(memory.looked_up(), parity);
    parity ^= 1;
  }
};

}  // namespace hadal::cuda
