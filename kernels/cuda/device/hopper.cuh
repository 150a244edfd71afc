#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/read_once.cuh"

namespace hadal::cuda {

// Hopper's copy engine and warpgroup products, one function per instruction. Addresses are of
// shared memory.

// `bytes` contiguous bytes, read once, a multiple of 16; completes on the barrier.
__device__ __forceinline__ void BulkCopy(uint32_t shared, const void* global, uint32_t bytes,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1], %2, [%3], %4;" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier), "l"(ReadOnce())
      : "memory");
}

// A box of the tensor at (column, row) to `to`, counted by the barrier.
__device__ __forceinline__ void CopyTile(uint32_t to, const CUtensorMap* map, int column, int row,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
// The same of what is read once.
__device__ __forceinline__ void CopyTileOnce(uint32_t to, const CUtensorMap* map, int column,
                                             int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(ReadOnce())
      : "memory");
}
// The same to the same address of the two blocks of a cluster, counted by the barrier of each.
__device__ __forceinline__ void CopyTileToBoth(uint32_t to, const CUtensorMap* map, int column,
                                               int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::"
      "cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(static_cast<uint16_t>(3))
      : "memory");
}
// To the second-level cache.
__device__ __forceinline__ void PrefetchTile(const CUtensorMap* map, int column, int row) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(map),
               "r"(column), "r"(row)
               : "memory");
}
__device__ __forceinline__ void PrefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void BeginProducts() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void AwaitProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of registers across what products do to them meanwhile.
__device__ __forceinline__ void Keep(float& v) { asm volatile("" : "+f"(v)::"memory"); }
__device__ __forceinline__ void Keep(uint32_t& v) { asm volatile("" : "+r"(v)::"memory"); }
template <int kTiles, typename T>
__device__ __forceinline__ void KeepAll(T (&v)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int c = 0; c < 4; ++c) Keep(v[i][c]);
  }
}

// A tile of rows of 128 bytes in the 128-byte swizzle: 16-byte chunk c of row r lies at chunk
// c ^ (r % 8). `at` is aligned to 1024 but for a multiple of 32 within the row.
__device__ __forceinline__ uint64_t TileDescriptor(uint32_t at) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kEightRows | uint64_t{1} << 16 | (at & 0x3ffff) >> 4;
}

// Registers of this warpgroup from here on. REQUIRES: all of its warps.
template <int kCount>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace hadal::cuda
