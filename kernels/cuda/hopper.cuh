#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/read_once.cuh"

namespace hadal::cuda {

// Hopper's barriers, tensor copies and warpgroup products, one function per instruction. Addresses
// are of shared memory.

__device__ __forceinline__ void BarrierInit(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// An arrival once all copies that this thread has started (CopyAsync...) are there.
__device__ __forceinline__ void ArriveWhenCopied(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
// One arrival, and `bytes` that copies will bring.
__device__ __forceinline__ void ArriveExpecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Returns when the phase of that parity is over.
__device__ __forceinline__ void AwaitBarrier(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred p;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra done;\nbra again;\ndone:\n}\n" ::"r"(barrier),
      "r"(parity)
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
__device__ __forceinline__ void CopyTileOnce(uint32_t to, const CUtensorMap* map, int column, int row,
                                             uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(ReadOnce())
      : "memory");
}
// The same to the same address of the two blocks of a cluster, counted by the barrier of each.
__device__ __forceinline__ void CopyTileToBoth(uint32_t to, const CUtensorMap* map, int column, int row,
                                               uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
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

// Makes ordinary writes to shared memory visible to warpgroup products.
__device__ __forceinline__ void FenceForProducts() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
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

__device__ __forceinline__ void ArriveCluster() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ __forceinline__ void AwaitCluster() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
// At the barrier of block `rank` of the cluster that is `barrier` in this one. Orders reads of shared
// memory that have returned, nothing else: a release of cluster scope waits for all of this block's
// writes to global memory, at every arrival.
__device__ __forceinline__ void ArriveAt(uint32_t barrier, int rank) {
  asm volatile(
      "{\n.reg .u32 to;\nmapa.shared::cluster.u32 to, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [to];\n}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
// To the shared memory of block `rank` of the cluster, at the address that is `at` in this one's.
__device__ __forceinline__ void StoreRemote16(uint32_t at, int rank, const float (&v)[4]) {
  asm volatile(
      "{\n.reg .u32 to;\nmapa.shared::cluster.u32 to, %0, %1;\n"
      "st.shared::cluster.v4.f32 [to], {%2, %3, %4, %5};\n}\n" ::"r"(at),
      "r"(rank), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
      : "memory");
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
