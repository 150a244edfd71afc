#pragma once

#include <cuda.h>

#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/experts/moe_boxes.cuh"
#include "kernels/cuda/experts/moe_stream_copy.cuh"
#include "kernels/cuda/experts/split_f8.h"

namespace hadal::cuda {

// The grouped products of moe_stream.cuh on Hopper's FP8 tensor cores: weights are the left operand
// as they lie in memory, tokens, split in two, the right one. A block makes 128 weight rows of one
// tile at a time: warpgroup 0 fetches (tokens one by one, for they are gathered; weights by the
// copy engine), warpgroups 1 and 2 multiply 64 weight rows each.

inline constexpr int kStreamF8Producers = 128;
inline constexpr int kStreamF8Threads = kStreamF8Producers + 256;
inline constexpr int kStreamF8Box = 64 * 128;  // bytes of a warpgroup's weights
inline constexpr int kStreamF8LookAhead = 4;   // step at which the next item's tokens are looked up

struct StreamF8Part : StreamPart {
  SplitView split;  // instead of x
};
struct StreamF8Args {
  CUtensorMap shared_map, experts_map;  // PairMap() or RowMap()
  StreamF8Part shared, experts;
};

template <bool kGated>
struct StreamF8Shape {
  static constexpr bool kIsGated = kGated;
  static constexpr int kTokens = kStreamF8Tokens;
  static constexpr int kTiles = kTokens / 8;
  static constexpr int kSlots = 8;
  static constexpr int kStepK = 128;
  static constexpr int kItemRows = kGated ? 64 : 128;  // outputs of an item
  static constexpr int kWeightBytes = 2 * kStreamF8Box;
  static constexpr int kXRows = 2 * kTokens;  // high parts, then low ones
  static constexpr int kSlotBytes = kWeightBytes + kXRows * 128;
  static constexpr int kScaleBytes = kTokens * 4;
  static constexpr int kSharedBytes = 1024 + kSlots * (kSlotBytes + kScaleBytes + 16);
};

template <typename Shape>
struct StreamF8Memory {
  uint32_t base;
  __device__ explicit StreamF8Memory(const void* memory)
      : base((SharedAddress(memory) + 1023) / 1024 * 1024) {}
  __device__ uint32_t weights(int slot) const { return base + slot * Shape::kSlotBytes; }
  __device__ uint32_t x(int slot) const { return weights(slot) + Shape::kWeightBytes; }
  __device__ uint32_t scales(int slot) const {
    return base + Shape::kSlots * Shape::kSlotBytes + slot * Shape::kScaleBytes;
  }
  __device__ uint32_t full(int slot) const { return scales(Shape::kSlots) + slot * 16; }
  __device__ uint32_t empty(int slot) const { return full(slot) + 8; }
  __device__ void InitBarriers() const {
    for (int i = 0; i < Shape::kSlots; ++i) {
      BarrierInit(full(i), kStreamF8Producers + 1);
      BarrierInit(empty(i), 8);
    }
    FenceBarrierInit();
  }
};

template <typename Shape>
struct StreamF8Slot {
  int index = 0, parity = 0;
  __device__ __forceinline__ void Next() {
    if (++index == Shape::kSlots) index = 0, parity ^= 1;
  }
};

// Which tokens an item reads: a thread copies chunk threadIdx.x % 8 of rows threadIdx.x / 8 + 16 i
// of a slot, and the scale of token threadIdx.x.
template <typename Shape>
struct StreamF8Source {
  static constexpr int kTokens = Shape::kTokens / 16;  // of a thread
  int token[kTokens];
  int scaled;

  // Starts the loads; nothing waits for them.
  __device__ __forceinline__ void Fetch(const StreamF8Part& p, const RowTile& tile) {
#pragma unroll
    for (int i = 0; i < kTokens; ++i)
      token[i] = At(p, tile, static_cast<int>(threadIdx.x) / 8 + i * 16);
    scaled = At(p, tile, static_cast<int>(threadIdx.x));
  }

 private:
  // Tokens behind the last one read it.
  __device__ __forceinline__ static int At(const StreamF8Part& p, const RowTile& tile, int token) {
    const int from = tile.first + max(min(token, tile.count - 1), 0);
    return p.source == nullptr ? from : __ldcg(p.source + from);
  }
};

// Where a producer thread reads.
template <typename Shape>
struct StreamF8Gather {
  static constexpr int kRows = Shape::kXRows / 16;
  const uint8_t* codes;
  const float* scale;
  uint32_t offset[kRows];
  int valid = 0;  // bit i; bit kRows: the scale

  __device__ __forceinline__ StreamF8Gather(const StreamF8Part& p, const RowTile& tile,
                                            const StreamF8Source<Shape>& source)
      : codes(p.split.codes) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = static_cast<int>(threadIdx.x) / 8 + i * 16;
      const int row = source.token[i % source.kTokens] * 2 + r / Shape::kTokens;
      offset[i] = static_cast<uint32_t>(row) * p.split.blocks * 128 + threadIdx.x % 8 * 16;
      valid |= static_cast<int>(r % Shape::kTokens < tile.count) << i;
    }
    scale = p.split.scales + int64_t{source.scaled} * p.split.blocks;
    valid |= static_cast<int>(static_cast<int>(threadIdx.x) < min(tile.count, Shape::kTokens))
             << kRows;
  }
  __device__ __forceinline__ void Copy(uint32_t x, uint32_t scales, int step) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = static_cast<int>(threadIdx.x) / 8 + i * 16, chunk = threadIdx.x % 8;
      if (valid >> i & 1) {
        CopyAsync16(x + r * 128 + (chunk ^ r % 8) * 16, codes + offset[i] + step * 128, true);
      }
    }
    if (valid >> kRows & 1) CopyAsync4(scales + threadIdx.x * 4, scale + step);
  }
};

template <typename Shape>
__device__ __forceinline__ void CopyStreamWeights(const StreamF8Args& a, const StreamItem& item,
                                                  int step, uint32_t to, uint32_t full) {
  const CUtensorMap* map = item.of_shared ? &a.shared_map : &a.experts_map;
  const int column = step * 128 - (item.of_shared ? a.shared : a.experts).w.k_lead;
  ArriveExpecting(full, Shape::kWeightBytes);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t box = to + half * kStreamF8Box;
    if constexpr (Shape::kIsGated) {
      CopyRowPairs(box, map, column, item.first / 8 + half * 4, item.tile.expert, full);
    } else {
      CopyRows(box, map, column, item.first + half * 64, item.tile.expert, full);
    }
  }
}

// Weights of the shared items, as far as the ring goes, by one thread; steps.
template <typename Shape>
__device__ __forceinline__ int StartStream(const StreamF8Args& a,
                                           const StreamItems<Shape, StreamF8Args>& items,
                                           const StreamF8Memory<Shape>& memory) {
  int slot = 0;
  for (int i = blockIdx.x; i < items.shared_items; i += gridDim.x) {
    const StreamItem item = items.At(i);
    for (int step = 0; step < items.Steps(item); ++step) {
      if (slot == Shape::kSlots) return slot;
      CopyStreamWeights<Shape>(a, item, step, memory.weights(slot), memory.full(slot));
      ++slot;
    }
  }
  return slot;
}

// started: steps whose weights are under way.
template <typename Shape>
__device__ __forceinline__ void ProduceStream(const StreamF8Args& a,
                                              const StreamItems<Shape, StreamF8Args>& items,
                                              const StreamF8Memory<Shape>& memory, int started) {
  StreamF8Slot<Shape> slot;
  StreamItem next = items.At(blockIdx.x);
  StreamF8Source<Shape> source;
  source.Fetch(items.part(next), next.tile);
  for (int i = blockIdx.x; i < items.count; i += gridDim.x) {
    const StreamItem item = next;
    const StreamF8Gather<Shape> gather(items.part(item), item.tile, source);
    const int steps = items.Steps(item);
    for (int step = 0; step < steps; ++step) {
      AwaitBarrier(memory.empty(slot.index), slot.parity ^ 1);
      const uint32_t full = memory.full(slot.index);
      if (threadIdx.x == 0 && --started < 0) {
        CopyStreamWeights<Shape>(a, item, step, memory.weights(slot.index), full);
      }
      gather.Copy(memory.x(slot.index), memory.scales(slot.index), step);
      ArriveWhenCopied(full);
      slot.Next();
      if (step == min(kStreamF8LookAhead, steps - 1)) {
        next = items.At(i + gridDim.x);
        source.Fetch(items.part(next), next.tile);
      }
    }
  }
}

}  // namespace hadal::cuda
