#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "common/check.h"

namespace hadal::cuda {

inline constexpr int kRowThreads = 512;
inline constexpr int kRowWarps = kRowThreads / 32;

// Marks a kernel whose rows have this many CTAs each.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define HADAL_ROW_CTAS(ctas)
#else
#define HADAL_ROW_CTAS(ctas) __cluster_dims__(ctas, 1, 1)
#endif

// The CTAs that work on one row of logits: a cluster, which reads each other's shared memory;
// before Hopper one CTA. Grid: [rows * kCtas].
template <int kCtas>
struct RowGroup {
  static __device__ int row() { return blockIdx.x / kCtas; }
  static __device__ int rank() { return blockIdx.x % kCtas; }

  // All threads of the row. Shared memory written before it is seen by peers after it. A CTA may
  // end only after a Sync() that follows its peers' last look at its memory.
  static __device__ void Sync() {
#if __CUDA_ARCH__ >= 900
    if constexpr (kCtas > 1) {
      cooperative_groups::this_cluster().sync();
      return;
    }
#endif
    __syncthreads();
  }

  // The same variable in the shared memory of CTA `rank`.
  template <typename T>
  static __device__ T* At(T* shared, int rank) {
#if __CUDA_ARCH__ >= 900
    if constexpr (kCtas > 1)
      return cooperative_groups::this_cluster().map_shared_rank(shared, rank);
#endif
    return shared;
  }
};

template <typename T>
__device__ T ShuffleXor(T value, int mask) {
  static_assert(sizeof(T) % 4 == 0);
  union {
    T value;
    uint32_t words[sizeof(T) / 4];
  } u{value};
#pragma unroll
  for (uint32_t& word : u.words) word = __shfl_xor_sync(~0u, word, mask);
  return u.value;
}

// Shared memory of GroupReduce().
struct ReduceSpace {
  static constexpr int kBytes = 16;
  alignas(16) char warps[kRowWarps][kBytes];
  alignas(16) char cta[kBytes];
};

// op over all threads of the row, in every thread, the same bits in all. op is commutative.
// REQUIRES: a Sync() between two calls.
template <int kCtas, typename T, typename Op>
__device__ T GroupReduce(T value, Op op, ReduceSpace& space) {
  static_assert(sizeof(T) <= ReduceSpace::kBytes);
  using Group = RowGroup<kCtas>;
  const int warp = threadIdx.x / 32;
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value = op(value, ShuffleXor(value, mask));
  if (threadIdx.x % 32 == 0) *reinterpret_cast<T*>(space.warps[warp]) = value;
  __syncthreads();
  if (warp == 0) {
    value = *reinterpret_cast<const T*>(space.warps[threadIdx.x % kRowWarps]);
#pragma unroll
    for (int mask = kRowWarps / 2; mask > 0; mask /= 2) value = op(value, ShuffleXor(value, mask));
    if (threadIdx.x == 0) *reinterpret_cast<T*>(space.cta) = value;
  }
  Group::Sync();
  // Each lane asks one peer, so that all answers are on their way at once.
  T result = *reinterpret_cast<const T*>(Group::At(space.cta, static_cast<int>(threadIdx.x) % kCtas));
#pragma unroll
  for (int mask = kCtas / 2; mask > 0; mask /= 2) result = op(result, ShuffleXor(result, mask));
  return result;
}

// Calls f.operator()<CTAs per row>(): as many as `ctas_per_sm` on every multiprocessor allow, so
// that a few rows use the whole device too. Four or more at most fill half of it: when they should
// fill nearly all, some clusters wait until others have ended.
template <typename F>
void WithRowCtas(int rows, int ctas_per_sm, const CudaContext& context, F f) {
  const int64_t slots = int64_t{context.sm_count} * ctas_per_sm;
  if (context.arch < 90 || rows * 2 > slots) return f.template operator()<1>();
  if (rows * 8 > slots) return f.template operator()<2>();
  if (rows * 16 > slots) return f.template operator()<4>();
  f.template operator()<8>();
}

}  // namespace hadal::cuda
