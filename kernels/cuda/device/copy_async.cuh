#pragma once

#include <cstdint>

#include "kernels/cuda/device/read_once.cuh"

namespace hadal::cuda {

// Copies to shared memory in the background, and the groups in which a thread awaits its own. What
// they bring is read by LoadShared...() or behind a barrier.

// 16 bytes; zeros when not valid (`from` must still be a readable address).
__device__ __forceinline__ void CopyAsync16(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void CopyAsync8(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 8 : 0));
}
__device__ __forceinline__ void CopyAsync4(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from));
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void AwaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// The same of what is read once.
__device__ __forceinline__ void CopyOnce16(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2;" ::"r"(to),
               "l"(from), "l"(ReadOnce()));
}
__device__ __forceinline__ void CopyOnce16(uint32_t to, const void* from, bool valid) {
  asm volatile(
      "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(to),
      "l"(from), "r"(valid ? 16 : 0), "l"(ReadOnce()));
}

}  // namespace hadal::cuda
