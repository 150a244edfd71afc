#pragma once

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/experts/moe_few_hidden.cuh"
#include "kernels/cuda/experts/moe_mma.cuh"
#include "kernels/cuda/weights/weight_view.cuh"

namespace hadal::cuda {

// out = shared w2 hidden + sum over the local experts of weight * (w2 hidden), in one pass: an item
// is 16 outputs, its k runs over the shared MLP and then over the experts, cut in as many pieces as
// there are warps. Sums are FP32, in that order.

template <typename W>
struct W2Shared {
  FewSums<kW2Warps<W>> sums;
  FewJobs jobs;
};

// A step of an item: part -1 is the shared MLP, part j job j.
struct W2Cursor {
  int part;
  int step;  // within the part
  int left;  // of this warp in this item, with this one
};

template <typename W>
struct W2Items {
  const FewExpertsArgs& a;
  const FewJobs& jobs;
  int shared_steps, steps, count;

  static __device__ int StepsOf(const WeightView& w, int width) {
    return width == 0 ? 0 : W2Step<W>::Count(width + (kIsF8<W> ? w.k_lead : 0));
  }
  __device__ W2Items(const FewExpertsArgs& args, const FewJobs& found)
      : a(args),
        jobs(found),
        shared_steps(StepsOf(args.shared2, args.shared_width)),
        steps(StepsOf(args.w2, args.width)),
        count((args.dim + 15) / 16) {}
  __device__ W2Cursor Begin() const {
    const int all = shared_steps + jobs.count * steps, warp = WarpIndex();
    const int first = all * warp / kW2Warps<W>;
    W2Cursor c{-1, first, all * (warp + 1) / kW2Warps<W> - first};
    while (c.left > 0 && c.step >= StepsOf(c.part)) {
      c.step -= StepsOf(c.part);
      ++c.part;
    }
    return c;
  }
  // True: of another part than before.
  __device__ __forceinline__ bool Advance(W2Cursor& c) const {
    --c.left;
    if (++c.step < StepsOf(c.part)) return false;
    c.step = 0;
    ++c.part;
    return true;
  }
  __device__ __forceinline__ typename W2Step<W>::Rows Rows(int item, int part) const {
    using At = typename W2Step<W>::Rows;
    const int row = item * 16;
    return part < 0 ? At(a.shared2, 0, row, row + 8) : At(a.w2, jobs.expert[part], row, row + 8);
  }

 private:
  __device__ __forceinline__ int StepsOf(int part) const { return part < 0 ? shared_steps : steps; }
};

enum class W2Copy { kWeights, kHidden, kBoth };

// What a warp copies next. A copy of it goes over the same steps.
template <typename W, int kTokens>
struct W2Producer {
  int item;
  W2Cursor at;
  FewSlot slot;
  typename W2Step<W>::Rows rows;
  W2Hidden<W, kTokens> hidden;

  __device__ __forceinline__ W2Producer(const W2Items<W>& items, const FewSlot& ring)
      : item(static_cast<int>(blockIdx.x)), at(items.Begin()), slot(ring) {
    if (at.left > 0) SetPart(items);
  }

  // Nothing behind the last item.
  template <W2Copy kWhat>
  __device__ __forceinline__ void Issue(const W2Items<W>& items) {
    if (at.left > 0) {
      if (kWhat != W2Copy::kHidden) rows.Copy(slot.at, at.step);
      if (kWhat != W2Copy::kWeights) {
        hidden.Copy(slot.at + W2Step<W>::kSlotBytes, at.step, items.a.x);
      }
      Advance(items);
    }
    slot.Next(kW2SlotBytes<W, kTokens>);
  }

 private:
  __device__ __forceinline__ void Advance(const W2Items<W>& items) {
    bool other = items.Advance(at);
    if (at.left == 0) {
      item += gridDim.x;
      if (item >= items.count) return;
      at = items.Begin();
      other = true;
    }
    if (other) SetPart(items);
  }
  __device__ __forceinline__ void SetPart(const W2Items<W>& items) {
    rows = items.Rows(item, at.part);
    hidden = W2Hidden<W, kTokens>(items.a, items.jobs, at.part);
  }
};

// total += a step's products, times the choices' weights. halves: of this warp.
template <typename W, int kTokens>
__device__ __forceinline__ void AddW2Step(const typename W2Step<W>::Weights& w,
                                          W2Raw<W, kTokens>& raw, const FewExpertsArgs& a,
                                          const FewJobs& jobs, int part, char* halves,
                                          MmaSums& total) {
  float2 weight = {1, 1};
  if (part >= 0) weight = *reinterpret_cast<const float2*>(&jobs.weight[part][threadIdx.x % 4 * 2]);
  float2 factor[W2Step<W>::kBlocks];
#pragma unroll
  for (float2& f : factor) f = weight;
  if constexpr (kIsF8<W>) {
    StoreHalves<kTokens>(raw, a.tokens, halves, factor);
    __syncwarp();
  }
#pragma unroll
  for (int b = 0; b < W2Step<W>::kBlocks; ++b) {
    FewTokens<W> x;
    if constexpr (kIsF8<W>) {
      HalvesAt<kTokens>(halves, a.tokens, b, x);
    } else {
#pragma unroll
      for (int i = 0; i < kFewParts; ++i) {
        const uint4 v[1] = {raw.at[b * kFewParts + i]};
        x[i] = TokensOf<W>(v);
      }
    }
    AddBlock<W>(w, b, x, factor[b], total);
  }
}

template <typename W>
__device__ __forceinline__ void StoreOut(const FewExpertsArgs& a, int item,
                                         const FewSums<kW2Warps<W>>& sums, int turn) {
  const int at = static_cast<int>(threadIdx.x);  // sums' index: lane * 4 + (row half, column bit)
  if (at >= 128) return;
  const int lane = at / 4, row = item * 16 + lane / 4 + at % 4 / 2 * 8;
  const int token = lane % 4 * 2 + at % 2;
  if (token >= a.tokens || row >= a.dim) return;
  a.out[int64_t{token} * a.dim + row] = FromFloat<bf16>(sums.Add(turn, at));
}

// kTokens: at least a.tokens.
template <typename W, int kTokens, int kSlots>
__global__ void __launch_bounds__(kW2Threads<W>, 2) FewW2Kernel(FewExpertsArgs a) {
  extern __shared__ __align__(128) char memory[];
  constexpr int kRingBytes = kSlots * kW2SlotBytes<W, kTokens>;
  auto& shared = *reinterpret_cast<W2Shared<W>*>(memory + kW2Warps<W> * kRingBytes);
  char* halves = reinterpret_cast<char*>(&shared + 1) +
                 threadIdx.x / 32 * (W2Step<W>::kBlocks * kTokens * 256);
  const uint32_t base = SharedAddress(memory);
  // The choices were written before the kernel of w13 let this one start: weights may be fetched
  // while it still runs, hidden values may not.
  PrepareJobs(a, shared.jobs);
  if (threadIdx.x < 32) FindJobs(a, shared.jobs);
  __syncthreads();
  const W2Items<W> items(a, shared.jobs);
  FewSlot slot(base + threadIdx.x / 32 * kRingBytes, kRingBytes);
  W2Producer<W, kTokens> producer(items, slot), early = producer;
  for (int i = 0; i < kSlots; ++i) early.template Issue<W2Copy::kWeights>(items);
  WaitForPrevious();
  AllowNext();
  for (int i = 0; i < kSlots; ++i) {
    producer.template Issue<W2Copy::kHidden>(items);
    CommitCopies();
  }
  int turn = 0;
  for (int item = blockIdx.x; item < items.count; item += gridDim.x, turn ^= 1) {
    MmaSums total = {};
    for (W2Cursor at = items.Begin(); at.left > 0; items.Advance(at)) {
      AwaitCopies<kSlots - 1>();
      __syncwarp();  // scales of other lanes
      const typename W2Step<W>::Weights w(slot.at);
      W2Raw<W, kTokens> raw(memory + (slot.at - base));
      slot.Next(kW2SlotBytes<W, kTokens>);
      __syncwarp();
      producer.template Issue<W2Copy::kBoth>(items);
      CommitCopies();
      AddW2Step<W, kTokens>(w, raw, a, shared.jobs, at.part, halves, total);
    }
    shared.sums.Share(turn, total);
    StoreOut<W>(a, item, shared.sums, turn);
  }
}

template <typename W, int kTokens, int kSlots>
constexpr int64_t FewW2SharedBytes() {
  const int64_t halves = kIsF8<W> ? kW2Warps<W> * W2Step<W>::kBlocks * kTokens * 256 : 0;
  return int64_t{kW2Warps<W>} * kSlots * kW2SlotBytes<W, kTokens> + int64_t{sizeof(W2Shared<W>)} +
         halves;
}

}  // namespace hadal::cuda
