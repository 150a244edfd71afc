#pragma once

#include <cuda.h>

#include "kernels/cuda/moe_mma.cuh"
#include "kernels/cuda/moe_tile.h"

namespace hadal::cuda {

// Grouped products of many rows per expert. A block makes 128 rows by kWeightRows weight rows of
// one expert at a time: warpgroup 0 fetches (rows one by one, for they are gathered; weights by
// tensor copies), warpgroups 1 and 2 multiply 64 rows each.

inline constexpr int kTileThreads = 384;
inline constexpr int kTileProducers = 128;
inline constexpr int kTileConsumerWarps = 8;

// kBlocks: 1, or 2: the two blocks of a cluster make the same outputs of neighbouring row tiles.
// When both are of one expert, each fetches half of the weights for both.
template <typename W, bool kGated, int kClusterBlocks>
struct TileShape {
  using Weight = W;
  static constexpr bool kIsGated = kGated;
  static constexpr int kBlocks = kClusterBlocks;
  static constexpr int kStepK = 128 / sizeof(W);
  // FP8 has a second set of sums, those of 128 weight rows of one step.
  static constexpr int kWeightRows = sizeof(W) == 1 && kBlocks == 1 ? 128 : 256;
  static constexpr int kSlots = kWeightRows == 128 ? 6 : 4;
  static constexpr int kOutputs = kGated ? kWeightRows / 2 : kWeightRows;
  static constexpr int kXBytes = kTileRows * 128;
  static constexpr int kWeightBytes = kWeightRows * 128;
  static constexpr int kSlotBytes = kXBytes + kWeightBytes;
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
  int other_expert;  // of the cluster's other block

  // Both blocks have the same weights.
  __device__ __forceinline__ bool together() const { return other_expert == tile.expert; }
};

template <typename Shape>
struct TileItems {
  const TileArgs& a;
  int shared_groups, shared_items, tiles, tiles_n, count;  // groups: of tiles, one a block

  __device__ static int CeilDiv(int x, int y) { return (x + y - 1) / y; }
  __device__ static int Rank() { return static_cast<int>(blockIdx.x) % Shape::kBlocks; }
  __device__ explicit TileItems(const TileArgs& args)
      : a(args),
        shared_groups(CeilDiv(args.shared.rows, kTileRows * Shape::kBlocks)),
        shared_items(shared_groups * CeilDiv(args.shared.n, Shape::kOutputs)),
        tiles(Uniform(__ldcg(args.experts.num_tiles))),
        tiles_n(CeilDiv(args.experts.n, Shape::kOutputs)),
        count(shared_items + CeilDiv(tiles, Shape::kBlocks) * tiles_n) {}
  // A block's items: from First() on, every Stride()-th.
  __device__ static int First() { return static_cast<int>(blockIdx.x) / Shape::kBlocks; }
  __device__ static int Stride() { return static_cast<int>(gridDim.x) / Shape::kBlocks; }

  // Starts to load an item, which nobody waits for before Settle(). Those behind the last one have
  // no rows.
  __device__ __forceinline__ TileItem At(int item) const {
    if (item >= count) return {{0, 0, 0}, 0, false, 0};
    return item < shared_items ? OfShared(item) : OfExperts(item - shared_items);
  }
  __device__ __forceinline__ static TileItem Settle(const TileItem& item) {
    return {{Uniform(item.tile.expert), Uniform(item.tile.first), Uniform(item.tile.count)},
            item.first,
            item.of_shared,
            Uniform(item.other_expert)};
  }
  __device__ __forceinline__ const TilePart& part(const TileItem& item) const {
    return item.of_shared ? a.shared : a.experts;
  }
  __device__ __forceinline__ int Steps(const TileItem& item) const {
    return CeilDiv(static_cast<int>(part(item).w.k), Shape::kStepK);
  }

 private:
  __device__ __forceinline__ TileItem OfShared(int i) const {
    const int first = (i % shared_groups * Shape::kBlocks + Rank()) * kTileRows;
    const int rows = min(kTileRows, a.shared.rows - first);
    return {{0, rows > 0 ? first : 0, max(rows, 0)}, i / shared_groups * Shape::kOutputs, true, 0};
  }
  // A block without a tile helps the other one with its weights.
  __device__ __forceinline__ TileItem OfExperts(int i) const {
    const int group = i / tiles_n * Shape::kBlocks, own = min(group + Rank(), tiles - 1);
    const int other = min(group + Shape::kBlocks - 1 - Rank(), tiles - 1);
    const RowTile* tile = a.experts.tiles + own;
    TileItem item{{__ldcg(&tile->expert), __ldcg(&tile->first), 0}, i % tiles_n * Shape::kOutputs, false,
                  __ldcg(&a.experts.tiles[other].expert)};
    if (group + Rank() < tiles) item.tile.count = __ldcg(&tile->count);
    return item;
  }
};

}  // namespace hadal::cuda
