#pragma once

#include <cuda.h>

#include "kernels/cuda/experts/moe_tile.h"

namespace hadal::cuda {

// Grouped products of many rows per expert. A block makes kRows rows by kWeightRows weight rows of
// one expert at a time: warpgroup 0 fetches (rows one by one, for they are gathered; weights by
// tensor copies), warpgroups 1 and 2 multiply 64 rows each, or of 64 rows half of the weight rows
// each.

inline constexpr int kTileThreads = 384;
inline constexpr int kTileProducers = 128;
inline constexpr int kTileConsumerWarps = 8;

// kBlocks: 1, or 2: the two blocks of a cluster make the same outputs of neighbouring row tiles.
// When both are of one expert, each fetches half of the weights for both.
template <typename W, bool kGated, int kClusterBlocks, int kItemWeightRows, int kTileRows>
struct TileShape {
  using Weight = W;
  static constexpr bool kIsGated = kGated;
  static constexpr int kBlocks = kClusterBlocks;
  static constexpr int kStepK = 128 / sizeof(W);
  static constexpr int kRows = kTileRows;
  static constexpr int kWeightRows = kItemWeightRows;
  static constexpr int kOutputs = kGated ? kWeightRows / 2 : kWeightRows;
  // Weight rows of a warpgroup, of which the second half are up rows when gated; its outputs.
  static constexpr int kGroupRows = kRows == 64 ? kWeightRows / 2 : kWeightRows;
  static constexpr int kGroupOutputs = kGated ? kGroupRows / 2 : kGroupRows;
  static constexpr int kSums = kGroupRows / 2;  // of a thread
  // A warp has whole scale blocks of the outputs, which are inputs of FP8 products: it rounds them.
  static constexpr bool kRounds = kGated && sizeof(W) == 1 && kGroupOutputs == 128;
  static constexpr int kBoxes = kGated && kRows == 64 ? 4 : 2;
  static constexpr int kBoxRows = kWeightRows / kBoxes;
  static constexpr int kXBytes = kRows * 128;
  static constexpr int kWeightBytes = kWeightRows * 128;
  static constexpr int kSlotBytes = kXBytes + kWeightBytes;
  static constexpr int kSlots = 200 * 1024 / kSlotBytes;
  // That go out at once.
  static constexpr int kStageColumns = kGroupOutputs < 64             ? kGroupOutputs
                                       : sizeof(W) == 1 || kSlots > 4 ? 64
                                                                      : 128;
  static constexpr int kStageRow = 2 * kStageColumns;              // bytes
  static constexpr int kStageBytes = kTileConsumerWarps * 16 * kStageRow;
  static constexpr int kBarrierBytes = 2 * kSlots * 8;
  // Of a slot: of its rows, then of the two halves of the weight rows.
  static constexpr int kScaleBytes = sizeof(W) == 1 ? (kRows + 4) * 4 : 0;
  static constexpr int kLookupBytes = 32 + kRows * 4;  // of the producers, see TileLookup
  static constexpr int kSharedBytes =
      kSlots * (kSlotBytes + kScaleBytes + 16) + kStageBytes + kBarrierBytes + kLookupBytes + 1024;
};

// The value of lane 0: the compiler then knows that a warp does not part over it.
__device__ __forceinline__ int Uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

struct TileItem {
  RowTile tile;
  int first;  // output
  bool of_shared;
  int other_expert;  // of the cluster's other block

  // Both blocks have the same weights.
  __device__ __forceinline__ bool together() const { return other_expert == tile.expert; }
};

template <typename Shape>
struct TileItems {
  const TileArgs& a;
  int shared_groups, shared_items, tiles = 0, tiles_n, count;  // groups: of tiles, one a block

  __device__ static int CeilDiv(int x, int y) { return (x + y - 1) / y; }
  __device__ static int Cluster() { return static_cast<int>(blockIdx.x) / Shape::kBlocks; }
  __device__ static int Rank() { return static_cast<int>(blockIdx.x) % Shape::kBlocks; }
  __device__ explicit TileItems(const TileArgs& args)
      : a(args),
        shared_groups(CeilDiv(args.shared.rows, Shape::kRows * Shape::kBlocks)),
        shared_items(shared_groups * CeilDiv(args.shared.n, Shape::kOutputs)),
        tiles_n(CeilDiv(args.experts.n, Shape::kOutputs)),
        count(shared_items) {}
  // Adds the experts' items. REQUIRES: the tiles are there.
  __device__ __forceinline__ void CountTiles() { SetTiles(Uniform(__ldcg(a.experts.num_tiles))); }
  // The block's first item, loaded while the tiles are counted: if it is one of those counted, its
  // place in their list does not depend on how many there are. REQUIRES: the tiles are there.
  __device__ __forceinline__ TileItem CountAndFirst() {
    const int there = __ldcg(a.experts.num_tiles);
    SetTiles(a.max_tiles);
    const TileItem first = Load(First());
    SetTiles(Uniform(there));
    return Shape::kBlocks == 1 ? first : Load(First());
  }
  // A block's items: one of each round of as many as there are clusters. The first round goes the
  // other way: who has one of the last round has none of the shared items, which may be longer.
  __device__ static int Stride() { return static_cast<int>(gridDim.x) / Shape::kBlocks; }
  __device__ static int First() { return Stride() - 1 - Cluster(); }
  __device__ static int After(int item) { return (item < Stride() ? Cluster() : item) + Stride(); }

  __device__ __forceinline__ bool OfExperts(int item) const {
    return item >= shared_items && item < count;
  }
  // The tile of a block of the cluster. REQUIRES: OfExperts(item).
  __device__ __forceinline__ const RowTile* Tile(int item, int rank) const {
    const int group = a.by_tiles_n.Divide(item - shared_items) * Shape::kBlocks;
    return a.experts.tiles + min(group + rank, tiles - 1);
  }
  // An item of the experts has that tile, of which a block without one takes no rows: it helps the
  // other one with its weights. Items behind the last one have no rows.
  __device__ __forceinline__ TileItem Item(int item, const RowTile& tile, int other_expert) const {
    if (item >= count) return {{0, 0, 0}, 0, false, 0};
    if (item < shared_items) return OfShared(item);
    const int i = item - shared_items, row = a.by_tiles_n.Divide(i);
    const bool has_rows = Shape::kBlocks == 1 || row * Shape::kBlocks + Rank() < tiles;
    return {{tile.expert, tile.first, has_rows ? tile.count : 0},
            (i - row * tiles_n) * Shape::kOutputs,
            false,
            other_expert};
  }
  // Waits for memory.
  __device__ __forceinline__ TileItem Load(int item) const {
    if (!OfExperts(item)) return Item(item, {0, 0, 0}, 0);
    const RowTile* own = Tile(item, Rank());
    const int other = Shape::kBlocks == 1 ? 0 : __ldcg(&Tile(item, 1 - Rank())->expert);
    return Item(item, {__ldcg(&own->expert), __ldcg(&own->first), __ldcg(&own->count)}, other);
  }
  // The item if every expert that lives here has one tile; behind the last expert one without rows.
  __device__ __forceinline__ TileItem Guess(int item) const {
    const int i = item - shared_items, expert = a.by_tiles_n.Divide(i);
    return {{min(expert, a.experts.matrices - 1), 0, expert < a.experts.matrices ? 1 : 0},
            (i - expert * tiles_n) * Shape::kOutputs,
            false,
            0};
  }
  __device__ __forceinline__ const TilePart& part(const TileItem& item) const {
    return item.of_shared ? a.shared : a.experts;
  }
  __device__ __forceinline__ int Steps(const TileItem& item) const {
    return CeilDiv(static_cast<int>(part(item).w.k), Shape::kStepK);
  }

 private:
  __device__ __forceinline__ void SetTiles(int n) {
    tiles = n;
    count = shared_items + CeilDiv(tiles, Shape::kBlocks) * tiles_n;
  }
  __device__ __forceinline__ TileItem OfShared(int i) const {
    const int column = a.by_groups.Divide(i), group = i - column * shared_groups;
    const int first = (group * Shape::kBlocks + Rank()) * Shape::kRows;
    const int rows = min(Shape::kRows, a.shared.rows - first);
    return {{0, rows > 0 ? first : 0, max(rows, 0)}, column * Shape::kOutputs, true, 0};
  }
};

}  // namespace hadal::cuda
