#pragma once

#include "kernels/cuda/row_group.cuh"

namespace hadal::cuda {

// A histogram of 64-bit sums over one row, a part in each of its CTAs. Sums are integers: whatever
// the order of the atomic additions, and however many CTAs there are, the bits are the same.
struct RowBins {
  static constexpr int kBins = 2048;
  static constexpr int kPerThread = kBins / kRowThreads;
  static constexpr int kLast = kBins - 1;

  alignas(16) uint32_t low[kBins];
  alignas(16) uint32_t high[kBins];
  uint64_t warp_totals[kRowWarps];
  struct Place {
    int bin;
    uint64_t target;
  } place;

  // REQUIRES: peers do not look at it, as after FindBin().
  __device__ void Clear() {
    for (int i = threadIdx.x; i < kBins; i += kRowThreads) low[i] = high[i] = 0;
    __syncthreads();
  }

  // Shared memory has no 64-bit addition; two of 32 bits with a carry are exact.
  __device__ void Add(int bin, uint64_t value) {
    const auto part = static_cast<uint32_t>(value);
    const uint32_t before = atomicAdd(&low[bin], part);
    const uint32_t rest = static_cast<uint32_t>(value >> 32) + (before + part < before ? 1u : 0u);
    if (rest != 0) atomicAdd(&high[bin], rest);
  }
};

// The bin of the row's histogram in which the running sum exceeds target_of(sum of all bins), kLast
// if it never does, and what is left of that target within the bin. In every thread.
template <int kCtas, typename TargetOf>
__device__ RowBins::Place FindBin(RowBins& bins, TargetOf target_of) {
  using Group = RowGroup<kCtas>;
  constexpr int kPer = RowBins::kPerThread;
  static_assert(kPer == 4);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  Group::Sync();
  uint64_t own[kPer] = {};
#pragma unroll 1
  for (int r = 0; r < kCtas; ++r) {
    const uint4 low = reinterpret_cast<const uint4*>(Group::At(bins.low, r))[threadIdx.x];
    const uint4 high = reinterpret_cast<const uint4*>(Group::At(bins.high, r))[threadIdx.x];
    own[0] += uint64_t{high.x} << 32 | low.x;
    own[1] += uint64_t{high.y} << 32 | low.y;
    own[2] += uint64_t{high.z} << 32 | low.z;
    own[3] += uint64_t{high.w} << 32 | low.w;
  }
  const uint64_t sum = own[0] + own[1] + own[2] + own[3];
  uint64_t running = sum;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, running, step);
    if (lane >= step) running += other;
  }
  if (lane == 31) bins.warp_totals[warp] = running;
  __syncthreads();
  uint64_t total = 0;
  uint64_t before = running - sum;
  for (int w = 0; w < kRowWarps; ++w) {
    if (w < warp) before += bins.warp_totals[w];
    total += bins.warp_totals[w];
  }
  const uint64_t target = target_of(total);
  if (target >= total && threadIdx.x == 0) bins.place = {RowBins::kLast, target - total};
  if (target < total && before <= target && target < before + sum) {
    int i = 0;
    for (; i < kPer - 1 && target >= before + own[i]; ++i) before += own[i];
    bins.place = {static_cast<int>(threadIdx.x) * kPer + i, target - before};
  }
  Group::Sync();
  return bins.place;
}

}  // namespace hadal::cuda
