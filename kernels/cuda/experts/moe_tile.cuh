#pragma once

#include <algorithm>

#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/hopper.cuh"
#include "kernels/cuda/device/wgmma.cuh"
#include "kernels/cuda/experts/moe_mma.cuh"
#include "kernels/cuda/experts/moe_tile_copy.cuh"
#include "kernels/cuda/experts/moe_tile_store.cuh"

namespace hadal::cuda {

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
    if constexpr (Shape::kRounds) {
      StoreRounded(memory, items.part(item), item, d);
    } else {
      StoreTile(memory, items.part(item), item, d);
    }
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
  LaunchClusters(kernel, static_cast<unsigned>(clusters * Shape::kBlocks), Shape::kBlocks,
                 kTileThreads, Shape::kSharedBytes, context, args);
}

}  // namespace hadal::cuda
