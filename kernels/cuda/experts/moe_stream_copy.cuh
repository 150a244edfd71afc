#pragma once

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/experts/moe_stream.h"
#include "kernels/cuda/weights/weight_view.cuh"

namespace hadal::cuda {

// Grouped products of few rows per expert: weights are streamed from memory once per tile of at
// most kTokens rows. A block makes 128 weight rows of one tile: 4 warps of 32 rows each, all with
// the same tokens, which lie in shared memory.

inline constexpr int kStreamWarps = 4;
inline constexpr int kStreamThreads = 32 * kStreamWarps;
inline constexpr int kStreamRows = 128;  // weight rows of an item
inline constexpr int kStreamM = 2;       // tiles of 16 weight rows of a warp

template <typename W, bool kGated, int kTokens, int kSlots>
struct StreamShape {
  static constexpr int kStepK = 128 / sizeof(W);
  static constexpr int kXRow = kStepK * 2;  // bytes of a token's step
  static constexpr int kWeightBytes = kStreamRows * 128;
  static constexpr int kXBytes = kTokens * kXRow;
  static constexpr int kScaleBytes = sizeof(W) == 1 ? kStreamRows * 4 : 0;
  static constexpr int kSlotBytes = kWeightBytes + kXBytes + kScaleBytes;
  static constexpr int kItemRows = kGated ? kStreamRows / 2 : kStreamRows;  // outputs of an item
  static constexpr int kTokenTiles = kTokens / 8;
};

// Where 16 bytes of a token lie in a slot: quarter warps read two tokens without bank conflicts.
template <typename W>
__device__ __forceinline__ int XOffset(int token, int chunk) {
  constexpr int kRow = 256 / sizeof(W);
  const int swizzled = sizeof(W) == 1 ? chunk ^ (token & 1) : chunk ^ (token & 1) * 4;
  return token * kRow + swizzled * 16;
}

// One item: a tile of rows and where its weight rows begin.
struct StreamItem {
  RowTile tile;
  int first;  // output
  bool of_shared;
};

template <typename Shape, typename Args = StreamArgs>
struct StreamItems {
  const Args& a;
  int shared_tiles, shared_items, tiles_n, count;

  __device__ static int CeilDiv(int x, int y) { return (x + y - 1) / y; }
  __device__ explicit StreamItems(const Args& args, int tokens)
      : a(args),
        shared_tiles(CeilDiv(args.shared.rows, tokens)),
        shared_items(shared_tiles * CeilDiv(args.shared.n, Shape::kItemRows)),
        tiles_n(CeilDiv(args.experts.n, Shape::kItemRows)),
        count(shared_items),
        tokens_(tokens) {}
  // Before this only the shared items are known.
  __device__ void CountExperts() {
    count = shared_items + __ldcg(a.experts.num_tiles) * tiles_n;
  }

  // Items behind the last one have no rows.
  __device__ __forceinline__ StreamItem At(int item) const {
    if (item >= count) return {{0, 0, 0}, 0, false};
    if (item < shared_items) {
      const int first = item % shared_tiles * tokens_;
      return {{0, first, min(tokens_, a.shared.rows - first)},
              item / shared_tiles * Shape::kItemRows,
              true};
    }
    const int i = item - shared_items;
    const RowTile* tile = a.experts.tiles + i / tiles_n;
    return {{__ldcg(&tile->expert), __ldcg(&tile->first), __ldcg(&tile->count)},
            i % tiles_n * Shape::kItemRows,
            false};
  }
  __device__ __forceinline__ const auto& part(const StreamItem& item) const {
    return item.of_shared ? a.shared : a.experts;
  }
  __device__ __forceinline__ int Steps(const StreamItem& item) const {
    const WeightView& w = part(item).w;
    return CeilDiv(static_cast<int>(w.k) + (Shape::kScaleBytes > 0 ? w.k_lead : 0), Shape::kStepK);
  }

 private:
  int tokens_;
};

// Output (pair) of the lane's row g in m-tile m of an item; row g + 8 is its up row or 8 further
// on.
template <bool kGated>
__device__ __forceinline__ int OutputOf(int first, int m) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4;
  return first + (kGated ? (warp * kStreamM + m) * 8 : (warp * kStreamM + m) * 16) + g;
}

// What a thread copies next, step by step and item by item.
template <typename W, bool kGated, int kTokens, int kSlots>
struct StreamProducer {
  using Shape = StreamShape<W, kGated, kTokens, kSlots>;
  static constexpr int kChunks = Shape::kXRow / 16;                    // of a token's step
  static constexpr int kXCopies = kTokens * kChunks / kStreamThreads;  // of a thread
  static constexpr int kXStep = kStreamThreads / kChunks;              // tokens between them

  uint32_t ring;
  int item;
  int step = 0;
  int steps = 0;
  int slot = 0;
  const char* row[kStreamM][2];
  bool valid[kStreamM][2];
  const float* scale = nullptr;
  int row_bytes, lead, k;
  const bf16* x[kXCopies];
  bool x_valid[kXCopies];

  __device__ __forceinline__ void Load(const StreamItems<Shape>& items) {
    const StreamItem at = items.At(item);
    const StreamPart& p = items.part(at);
    steps = items.Steps(at);
    const W* matrix = p.w.template matrix<W>(at.tile.expert);
    row_bytes = static_cast<int>(p.w.stride * sizeof(W));
    lead = sizeof(W) == 1 ? p.w.k_lead : 0;
    k = p.k;
#pragma unroll
    for (int m = 0; m < kStreamM; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int output = OutputOf<kGated>(at.first, m) + (kGated ? 0 : h * 8);
        valid[m][h] = output < p.n;
        const int64_t r = valid[m][h] ? output + (kGated ? h * p.n : 0) : 0;
        row[m][h] = reinterpret_cast<const char*>(matrix + r * p.w.stride);
      }
    }
    if constexpr (sizeof(W) == 1) LoadScale(p, at);
#pragma unroll
    for (int i = 0; i < kXCopies; ++i) {
      const int r = static_cast<int>(threadIdx.x) / kChunks + i * kXStep;
      x_valid[i] = r < at.tile.count;
      const int from = at.tile.first + (x_valid[i] ? r : 0);
      x[i] = p.x + static_cast<int64_t>(
                       p.source == nullptr ? from : __ldcg(p.source + from)) *
                       p.x_stride;
    }
  }

  // Lane i brings the scale of one of the warp's 32 rows: m-tile i / 16, half i / 8 % 2.
  __device__ __forceinline__ void LoadScale(const StreamPart& p, const StreamItem& at) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int m = warp * kStreamM + lane / 16, h = lane / 8 % 2, g = lane % 8;
    const int output = at.first + (kGated ? m * 8 + g : m * 16 + h * 8 + g);
    scale = p.w.scales(at.tile.expert, output < p.n ? output + (kGated ? h * p.n : 0) : 0);
  }

  __device__ __forceinline__ void CopyWeights(uint32_t to) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int at = step * 128 + part * 64 + lane % 4 * 16 - lead;
      const bool inside = at >= 0 && at < row_bytes;
#pragma unroll
      for (int m = 0; m < kStreamM; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          CopyOnce16(to + (((warp * 2 + part) * kStreamM + m) * 2 + h) * 512 + lane * 16,
                     row[m][h] + (inside ? at : 0), inside && valid[m][h]);
        }
      }
    }
  }

  __device__ __forceinline__ void Issue(const StreamItems<Shape>& items) {
    if (item < items.count) {
      if (step == 0) Load(items);
      const uint32_t to = ring + slot * Shape::kSlotBytes;
      CopyWeights(to);
      const int chunk = threadIdx.x % kChunks, first = step * Shape::kStepK + chunk * 8 - lead;
      const bool inside = first >= 0 && first < k;
#pragma unroll
      for (int i = 0; i < kXCopies; ++i) {
        if (!x_valid[i]) continue;
        const int token = static_cast<int>(threadIdx.x) / kChunks + i * kXStep;
        CopyAsync16(to + Shape::kWeightBytes + XOffset<W>(token, chunk),
                    x[i] + (inside ? first : 0), inside);
      }
      if constexpr (sizeof(W) == 1) {
        CopyAsync4(to + Shape::kWeightBytes + Shape::kXBytes + threadIdx.x * 4, scale + step);
      }
      if (++step == steps) {
        step = 0;
        item += gridDim.x;
      }
    }
    slot = slot + 1 == kSlots ? 0 : slot + 1;
    CommitCopies();
  }
};

}  // namespace hadal::cuda
