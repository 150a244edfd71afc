#pragma once

#include "kernels/cuda/moe_few.cuh"

namespace hadal::cuda {

// out = shared w2 hidden + sum over the local experts of weight * (w2 hidden), in one pass: an item
// is 16 outputs, its k runs over the shared MLP and then over the experts. Sums are FP32, in that
// order.

struct W2Shared {
  FewSums sums;
  FewJobs jobs;
};

using W2Slot = FewSlot<true>;

// The steps of an item, in turn for each warp: part -1 is the shared MLP, part j job j.
struct W2Cursor {
  int part;
  int step;  // within the part
  int left;  // steps of this warp in this item

  // Passes parts that have no step for this warp here.
  __device__ __forceinline__ bool Settle(int shared_steps, int steps) {
    const int before = part;
    while (left > 0 && step >= (part < 0 ? shared_steps : steps)) {
      step -= part < 0 ? shared_steps : steps;
      ++part;
    }
    return part != before;
  }
};

struct W2Items {
  const FewExpertsArgs& a;
  const FewJobs& jobs;
  int shared_steps, steps, count;

  static __device__ int StepsOf(int width) { return (width + W2Slot::kStepK - 1) / W2Slot::kStepK; }
  __device__ W2Items(const FewExpertsArgs& args, const FewJobs& found)
      : a(args),
        jobs(found),
        shared_steps(StepsOf(args.shared_width)),
        steps(StepsOf(args.width)),
        count((args.dim + 15) / 16) {}
  __device__ W2Cursor Begin() const {
    W2Cursor c{-1, static_cast<int>(threadIdx.x / 32), OwnSteps(shared_steps + jobs.count * steps)};
    c.Settle(shared_steps, steps);
    return c;
  }
  __device__ FewSource Source(int item, int part) const {
    const int row = item * 16 + threadIdx.x % 32 / 4;
    return part < 0 ? SourceOf(a.shared2, 0, row, row + 8, a.dim, a.dim)
                    : SourceOf(a.w2, jobs.expert[part], row, row + 8, a.dim, a.dim);
  }
  // Hidden row of this lane's token in that part, or null.
  __device__ const bf16* Hidden(int part) const {
    const int token = threadIdx.x % 32 / 4;
    if (token >= a.tokens) return nullptr;
    if (part < 0) return a.shared_hidden + token * a.shared_stride;
    const int row = jobs.row[part][token];
    return row < 0 ? nullptr : a.hidden + row * a.hidden_stride;
  }
};

enum class W2Copy { kWeights, kHidden, kBoth };

// What a warp copies next. A copy of it goes over the same steps.
template <int kSlots>
struct W2Producer {
  uint32_t ring;
  int item;
  W2Cursor at;
  int slot = 0;
  FewSource source;
  const bf16* hidden;

  __device__ __forceinline__ void Load(const W2Items& items) {
    if (item >= items.count || at.left == 0) return;
    source = items.Source(item, at.part);
    hidden = items.Hidden(at.part);
  }

  __device__ __forceinline__ void CopyHidden(const W2Items& items, uint32_t to) const {
    const int lane = threadIdx.x % 32;
    const int stride = at.part < 0 ? items.a.shared_stride : items.a.hidden_stride;
    // Any readable address will do where there is nothing to read.
    const bf16* row = hidden == nullptr ? static_cast<const bf16*>(items.a.x) : hidden;
#pragma unroll
    for (int part = 0; part < W2Slot::kParts; ++part) {
      const int k = at.step * W2Slot::kStepK + part * (W2Slot::kStepK / 2) + lane % 4 * 8;
      const bool inside = hidden != nullptr && k < stride;
      CopyAsync16(to + W2Slot::kWeightBytes + part * 512 + lane * 16, row + (inside ? k : 0),
                  inside);
    }
  }

  template <W2Copy kWhat>
  __device__ __forceinline__ void Issue(const W2Items& items) {
    if (item < items.count && at.left > 0) {
      const uint32_t to = ring + slot * W2Slot::kBytes;
      if (kWhat != W2Copy::kHidden) CopyWeights<true>(to, source, at.step);
      if (kWhat != W2Copy::kWeights) CopyHidden(items, to);
      at.step += kFewWarps;
      if (--at.left == 0) {
        item += gridDim.x;
        at = items.Begin();
        Load(items);
      } else if (at.Settle(items.shared_steps, items.steps)) {
        Load(items);
      }
    }
    slot = slot + 1 == kSlots ? 0 : slot + 1;
  }
};

__device__ __forceinline__ void AddStep(uint32_t slot, const FewJobs& jobs, int part,
                                        MmaSums& total) {
  const int lane = threadIdx.x % 32;
  MmaSums acc = {};
  MultiplySlot<true>(slot, acc,
                     [&](int p) { return slot + W2Slot::kWeightBytes + p * 512 + lane * 16; });
  float2 weight = {1, 1};
  if (part >= 0) weight = *reinterpret_cast<const float2*>(&jobs.weight[part][lane % 4 * 2]);
  total.at[0] += weight.x * acc.at[0];
  total.at[1] += weight.y * acc.at[1];
  total.at[2] += weight.x * acc.at[2];
  total.at[3] += weight.y * acc.at[3];
}

__device__ __forceinline__ void StoreOut(const FewExpertsArgs& a, int item, const FewSums& sums,
                                         int turn) {
  const int at = static_cast<int>(threadIdx.x);  // sums' index: lane * 4 + (row half, column bit)
  if (at >= 128) return;
  const int lane = at / 4, row = item * 16 + lane / 4 + at % 4 / 2 * 8;
  const int token = lane % 4 * 2 + at % 2;
  if (token >= a.tokens || row >= a.dim) return;
  a.out[int64_t{token} * a.dim + row] = FromFloat<bf16>(AddSums(sums, turn, at));
}

template <int kSlots>
__global__ void __launch_bounds__(kFewThreads, 1) FewW2Kernel(FewExpertsArgs a) {
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<W2Shared*>(memory + kFewWarps * kSlots * W2Slot::kBytes);
  const int warp = threadIdx.x / 32;
  const uint32_t ring = SharedAddress(memory) + warp * kSlots * W2Slot::kBytes;
  // The choices were written before the kernel of w13 let this one start: weights may be fetched
  // while it still runs, hidden values may not.
  PrepareJobs(a, shared.jobs);
  if (threadIdx.x < 32) FindJobs(a, shared.jobs);
  __syncthreads();
  const W2Items items(a, shared.jobs);
  W2Producer<kSlots> producer{ring, static_cast<int>(blockIdx.x), items.Begin()};
  producer.Load(items);
  W2Producer<kSlots> early = producer;
  for (int i = 0; i < kSlots - 1; ++i) early.template Issue<W2Copy::kWeights>(items);
  WaitForPrevious();
  AllowNext();
  for (int i = 0; i < kSlots - 1; ++i) {
    producer.template Issue<W2Copy::kHidden>(items);
    CommitCopies();
  }
  int slot = 0, turn = 0;
  for (int item = blockIdx.x; item < items.count; item += gridDim.x, turn ^= 1) {
    MmaSums total = {};
    W2Cursor at = items.Begin();
    while (at.left > 0) {
      AwaitCopies<kSlots - 2>();
      AddStep(ring + slot * W2Slot::kBytes, shared.jobs, at.part, total);
      slot = slot + 1 == kSlots ? 0 : slot + 1;
      producer.template Issue<W2Copy::kBoth>(items);
      CommitCopies();
      at.step += kFewWarps;
      --at.left;
      at.Settle(items.shared_steps, items.steps);
    }
    ShareSums(shared.sums, turn, total);
    StoreOut(a, item, shared.sums, turn);
  }
}

inline int64_t FewW2SharedBytes(int slots) {
  return int64_t{kFewWarps} * slots * W2Slot::kBytes + static_cast<int64_t>(sizeof(W2Shared));
}

}  // namespace hadal::cuda
