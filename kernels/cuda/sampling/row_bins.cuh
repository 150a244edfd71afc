#pragma once

#include "kernels/cuda/sampling/row_group.cuh"

namespace hadal::cuda {

inline constexpr int kSlotsPerThread = 4;
inline constexpr int kSlots = kSlotsPerThread * kRowThreads;

// A slot of a CTA's kSlots sums, and what is left of a target within it.
struct Slot {
  int index;
  uint64_t left;
};
struct SlotSpace {
  uint64_t warp_totals[kRowWarps];
  Slot found;
};

// The slot at which the running sum exceeds target_of(sum of all), the last one if it never does.
// Thread t has slots 4 t to 4 t + 3. In every thread of the CTA.
template <typename TargetOf>
__device__ Slot FindSlot(const uint64_t (&own)[kSlotsPerThread], TargetOf target_of,
                         SlotSpace& space) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  uint64_t sum = 0;
#pragma unroll
  for (const uint64_t v : own) sum += v;
  uint64_t running = sum;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, running, step);
    if (lane >= step) running += other;
  }
  if (lane == 31) space.warp_totals[warp] = running;
  __syncthreads();
  uint64_t total = 0;
  uint64_t before = running - sum;
#pragma unroll
  for (int w = 0; w < kRowWarps; ++w) {
    const uint64_t of_warp = space.warp_totals[w];
    if (w < warp) before += of_warp;
    total += of_warp;
  }
  const uint64_t target = target_of(total);
  if (target >= total && threadIdx.x == 0) space.found = {kSlots - 1, target - total};
  if (target < total && before <= target && target < before + sum) {
    int i = 0;
#pragma unroll
    for (int next = 1; next < kSlotsPerThread; ++next) {
      if (i == next - 1 && target >= before + own[next - 1]) {
        before += own[next - 1];
        i = next;
      }
    }
    space.found = {static_cast<int>(threadIdx.x) * kSlotsPerThread + i, target - before};
  }
  __syncthreads();
  return space.found;
}

// A histogram of 64-bit sums over one row, a part in each of its CTAs. Sums are integers: whatever
// the order of the atomic additions, and however many CTAs there are, the bits are the same.
struct RowBins {
  static constexpr int kBins = kSlots;
  static constexpr int kLast = kBins - 1;

  alignas(16) uint32_t low[kBins];
  alignas(16) uint32_t high[kBins];

  // REQUIRES: peers do not look at it, as after Total().
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

  // Makes every CTA's part the sums of all. Nothing is to be added afterwards.
  template <int kCtas>
  __device__ void Total();

  // FindSlot() of the sums. REQUIRES: Total().
  template <typename TargetOf>
  __device__ Slot Find(TargetOf target_of, SlotSpace& space) const {
    uint64_t own[kSlotsPerThread];
    Load(low, high, own);
    return FindSlot(own, target_of, space);
  }

 private:
  // The thread's own slots.
  static __device__ void Load(const uint32_t* low, const uint32_t* high,
                              uint64_t (&own)[kSlotsPerThread]) {
    const uint4 l = reinterpret_cast<const uint4*>(low)[threadIdx.x];
    const uint4 h = reinterpret_cast<const uint4*>(high)[threadIdx.x];
    own[0] = uint64_t{h.x} << 32 | l.x;
    own[1] = uint64_t{h.y} << 32 | l.y;
    own[2] = uint64_t{h.z} << 32 | l.z;
    own[3] = uint64_t{h.w} << 32 | l.w;
  }
  template <int kShift>
  static __device__ uint4 Words(const uint64_t (&own)[kSlotsPerThread]) {
    return {static_cast<uint32_t>(own[0] >> kShift), static_cast<uint32_t>(own[1] >> kShift),
            static_cast<uint32_t>(own[2] >> kShift), static_cast<uint32_t>(own[3] >> kShift)};
  }
};

template <int kCtas>
__device__ void RowBins::Total() {
  using Group = RowGroup<kCtas>;
  Group::Sync();
  if constexpr (kCtas == 1) return;
  uint64_t sum[kSlotsPerThread] = {};
#pragma unroll 2  // loads from peers on their way at a time
  for (int r = 0; r < kCtas; ++r) {
    uint64_t part[kSlotsPerThread];
    Load(Group::At(low, r), Group::At(high, r), part);
#pragma unroll
    for (int i = 0; i < kSlotsPerThread; ++i) sum[i] += part[i];
  }
  Group::Sync();
  reinterpret_cast<uint4*>(low)[threadIdx.x] = Words<0>(sum);
  reinterpret_cast<uint4*>(high)[threadIdx.x] = Words<32>(sum);
}

}  // namespace hadal::cuda
