#pragma once

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe_tile_copy.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace hadal::cuda {

// kColumns columns of a warp's 16 rows, from sums by way of shared memory, 16 bytes a store.
// pair(j, h): columns 8 j + 2 q and the next of row g + 8 h.
template <int kColumns, typename PairAt>
__device__ __forceinline__ void StoreColumns(uint32_t stage, const TilePart& p, const RowTile& tile,
                                             int row0, int column0, int limit, PairAt pair) {
  constexpr int kRow = 2 * kColumns;     // bytes
  constexpr int kChunks = kColumns / 8;  // of a row
  constexpr int kTurn = kChunks < 8 ? kChunks : 8;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  __syncwarp();
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      StoreShared4(stage + (g + 8 * h) * kRow + (j ^ g % kTurn) * 16 + q * 4, pair(j, h));
    }
  }
  __syncwarp();
#pragma unroll 4
  for (int i = lane; i < 16 * kChunks; i += 32) {
    const int r = i / kChunks, chunk = i % kChunks, column = column0 + chunk * 8;
    if (row0 + r >= tile.count || column >= limit) continue;
    const uint4 v = LoadShared16(stage + r * kRow + (chunk ^ r % kTurn) * 16);
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
using TileSums = float[Shape::kSums];

template <typename Shape>
__device__ __forceinline__ void StoreTile(const TileMemory<Shape>& memory, const TilePart& p,
                                          const TileItem& item, const TileSums<Shape>& d) {
  const int warp = static_cast<int>(threadIdx.x) / 32 - 4, q = threadIdx.x % 4;
  const int row0 = warp % (Shape::kRows / 16) * 16;
  const int first = item.first + warp / (Shape::kRows / 16) * Shape::kGroupOutputs;
  constexpr int kColumns = Shape::kStageColumns;
  if (row0 >= item.tile.count) return;
#pragma unroll
  for (int part = 0; part < Shape::kGroupOutputs / kColumns; ++part) {
    const int column0 = first + part * kColumns;
    StoreColumns<kColumns>(memory.stage(warp), p, item.tile, row0, column0,
                           Shape::kIsGated ? p.out_stride : p.n, [&](int j, int h) {
                             const int at = part * kColumns / 2 + 4 * j + 2 * h;
                             if constexpr (!Shape::kIsGated) return PackBf16(d[at], d[at + 1]);
                             constexpr int kUp = Shape::kSums / 2;
                             const int column = column0 + 8 * j + 2 * q;
                             const float first = SiluMul(d[at], d[at + kUp]);
                             const float second = SiluMul(d[at + 1], d[at + 1 + kUp]);
                             return PackBf16(column < p.n ? first : 0,
                                             column + 1 < p.n ? second : 0);
                           });
  }
}

// A warpgroup without rows only hands the slots on.
template <typename Shape>
__device__ __forceinline__ void PassItem(const TileMemory<Shape>& memory, int steps,
                                         TileSlot<Shape::kSlots>& slot) {
  for (int step = 0; step < steps; ++step) {
    AwaitBarrier(memory.full(slot.index), slot.parity);
    if (threadIdx.x % 32 == 0) memory.HandBack(slot.index);
    slot.Next();
  }
}

// multiply(memory, steps, group, slot, sums) makes the sums of one item.
template <typename Shape, typename Multiply>
__device__ __forceinline__ void Consume(const TileArgs& a, const TileMemory<Shape>& memory,
                                        Multiply multiply) {
  WaitForPrevious();
  AllowNext();
  TileItems<Shape> items(a);
  items.CountTiles();
  const int group = Uniform(static_cast<int>(threadIdx.x) / 128) - 1;
  TileSlot<Shape::kSlots> slot;
  for (int i = items.First(); i < items.count; i = items.After(i)) {
    const TileItem item = items.Item(i, memory.AwaitTile(slot), 0);
    if (Shape::kRows == 64 ? item.tile.count == 0 : group * 64 >= item.tile.count) {
      PassItem(memory, items.Steps(item), slot);
      continue;
    }
    TileSums<Shape> d;
    multiply(memory, items.Steps(item), group, slot, d);
    StoreTile(memory, items.part(item), item, d);
  }
}

// Both blocks of a cluster are there: their barriers are ready, or nothing is on its way to them.
template <typename Shape>
__device__ __forceinline__ void JoinCluster() {
  if constexpr (Shape::kBlocks == 1) return;
  ArriveCluster();
  AwaitCluster();
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
  JoinCluster<Shape>();
  return memory;
}

// The body of a kernel: what its warpgroups do. `multiply` as Consume() takes it.
template <typename Shape, typename Multiply>
__device__ __forceinline__ void RunTiles(const TileArgs& a, char* shared, Multiply multiply) {
  const TileMemory<Shape> memory = BeginTiles<Shape>(a, shared);
  if (threadIdx.x < kTileProducers) {
    GiveRegisters<56>();
    Produce<Shape>(a, memory);
  } else {
    TakeRegisters<224>();
    Consume<Shape>(a, memory, multiply);
  }
  JoinCluster<Shape>();
}

template <typename Shape>
void LaunchTiles(void (*kernel)(TileArgs), TileArgs& args, int max_tiles, CudaContext& context) {
  constexpr DType dtype = sizeof(typename Shape::Weight) == 1 ? DType::kF8E4M3 : DType::kBF16;
  constexpr int kBox = Shape::kBoxRows;
  static const bool once = [&] {
    HADAL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    Shape::kSharedBytes));
    return true;
  }();
  (void)once;
  args.experts_map = WeightMap(args.experts, dtype, kBox);
  args.shared_map = args.shared.n == 0 ? args.experts_map : WeightMap(args.shared, dtype, kBox);
  const auto tiles = [](int n, int of) { return (n + of - 1) / of; };
  const int groups = tiles(args.shared.rows, Shape::kRows * Shape::kBlocks);
  const int tiles_n = tiles(args.experts.n, Shape::kOutputs);
  args.by_groups = Divisor(std::max(1, groups));
  args.by_tiles_n = Divisor(tiles_n);
  args.max_tiles = max_tiles;
  const int64_t items = int64_t{groups} * tiles(args.shared.n, Shape::kOutputs) +
                        int64_t{tiles(max_tiles, Shape::kBlocks)} * tiles_n;
  const auto clusters = std::clamp<int64_t>(items, 1, context.sm_count / Shape::kBlocks);
  LaunchClusters(kernel, static_cast<unsigned>(clusters * Shape::kBlocks), Shape::kBlocks, kTileThreads,
                 Shape::kSharedBytes, context, args);
}

}  // namespace hadal::cuda
