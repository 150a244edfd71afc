#pragma once

#include <cstdint>

namespace hadal::cuda {

// Barriers in shared memory, from sm_90 on, and what the blocks of a cluster do between them. One
// function per instruction; addresses are of shared memory.

__device__ __forceinline__ void BarrierInit(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// One arrival for a warp whose lanes have read, by ordinary loads, what others replace behind the
// barrier: an arrival orders what its own thread did and nothing else.
__device__ __forceinline__ void ArriveForWarp(uint32_t barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) Arrive(barrier);
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

// The same in a loop that the compiler sees and arranges. Attention's kernels were measured with
// this form, all others with the one above; each gets other registers with the other.
__device__ __forceinline__ void PollBarrier(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}

// Orders what this thread did to shared memory before what the copy engine and warpgroup products
// do to it.
__device__ __forceinline__ void FenceAsync() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void ArriveCluster() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
// For barriers that this thread has made: after FenceBarrierInit() they are there for all threads
// of the cluster once these have arrived. Orders nothing else.
__device__ __forceinline__ void ArriveClusterRelaxed() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
__device__ __forceinline__ void AwaitCluster() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
// At the barrier of block `rank` of the cluster that is `barrier` in this one. Orders reads of
// shared memory that have returned, nothing else: a release of cluster scope waits for all of this
// block's writes to global memory, at every arrival.
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
// Where the shared memory of CTA `rank` has what is at `address` in this one's.
__device__ __forceinline__ uint32_t AddressAt(uint32_t address, int rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
// Writes in the background, counted by a barrier of the CTA that gets them.
__device__ __forceinline__ void Send(uint32_t to, float4 x, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void Send(uint32_t to, float2 x, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
          to),
      "f"(x.x), "f"(x.y), "r"(barrier)
      : "memory");
}

}  // namespace hadal::cuda
