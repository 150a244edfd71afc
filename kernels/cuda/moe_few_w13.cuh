#pragma once

#include "kernels/cuda/moe_few.cuh"

namespace hadal::cuda {

// hidden = silu(gate x) * (up x) for every local expert that a token chose, and for the shared MLP.
// An item is 8 gate rows and their 8 up rows. All tokens lie in shared memory.

// Bytes between tokens in shared memory: quarter warps that read 16 bytes of 2 tokens meet no bank
// twice.
constexpr int FewXStride(int dim) { return (dim * 2 + 255) / 256 * 256 + 64; }

struct W13Shared {
  FewSums sums;
  FewJobs jobs;
};

struct W13Items {
  const FewExpertsArgs& a;
  const FewJobs& jobs;
  int shared_items;
  int tiles;  // of one expert

  __device__ W13Items(const FewExpertsArgs& args, const FewJobs& found)
      : a(args),
        jobs(found),
        shared_items((args.shared_width + 7) / 8),
        tiles((args.width + 7) / 8) {}
  __device__ int count() const { return shared_items + jobs.count * tiles; }
  __device__ FewSource Source(int item) const {
    const int g = threadIdx.x % 32 / 4;
    if (item < shared_items) {
      const int row = item * 8 + g;
      return SourceOf(a.shared13, 0, row, a.shared_width + row, a.shared_width, 2 * a.shared_width);
    }
    const int job = (item - shared_items) / tiles, row = (item - shared_items) % tiles * 8 + g;
    return SourceOf(a.w13, jobs.expert[job], row, a.width + row, a.width, 2 * a.width);
  }
};

// What a warp copies next.
template <int kSlots>
struct W13Producer {
  using Slot = FewSlot<false>;
  uint32_t ring;  // of this warp
  int own_steps;  // of this warp per item
  int item;
  int step = 0;  // among own_steps
  int slot = 0;
  FewSource source;

  // Copies the next step into the next slot; nothing after the last item. Always one group.
  __device__ __forceinline__ void Issue(const W13Items& items, int item_count) {
    if (own_steps > 0 && item < item_count) {
      if (step == 0) source = items.Source(item);
      CopyWeights<false>(ring + slot * Slot::kBytes, source,
                         step * kFewWarps + static_cast<int>(threadIdx.x / 32));
      if (++step == own_steps) {
        step = 0;
        item += gridDim.x;
      }
    }
    slot = slot + 1 == kSlots ? 0 : slot + 1;
    CommitCopies();
  }
};

__device__ __forceinline__ void StoreHidden(const FewExpertsArgs& a, const W13Items& items,
                                            int item, const FewSums& sums, int turn) {
  const int pair = static_cast<int>(threadIdx.x);
  if (pair >= 64) return;
  const int lane = pair / 2, g = lane / 4, token = lane % 4 * 2 + pair % 2;
  if (token >= a.tokens) return;
  bf16* to;
  if (item < items.shared_items) {
    to = a.shared_hidden + token * a.shared_stride + item * 8 + g;
  } else {
    const int job = (item - items.shared_items) / items.tiles;
    const int row = items.jobs.row[job][token];
    if (row < 0) return;
    to = a.hidden + row * a.hidden_stride + (item - items.shared_items) % items.tiles * 8 + g;
  }
  const float gate = AddSums(sums, turn, lane * 4 + pair % 2);
  const float up = AddSums(sums, turn, lane * 4 + 2 + pair % 2);
  *to = FromFloat<bf16>(SiluMul(gate, up));
}

// Tokens to shared memory, zeros behind dim; by all warps but the first.
__device__ inline void LoadTokens(const FewExpertsArgs& a, char* to) {
  const int stride = FewXStride(a.dim), chunks = (a.dim + 127) / 128 * 16;
  for (int i = threadIdx.x - 32; i < a.tokens * chunks; i += kFewThreads - 32) {
    const int t = i / chunks, c = i % chunks;
    uint4 v = {0, 0, 0, 0};
    if (c * 8 < a.dim) {
      v = __ldcg(
          reinterpret_cast<const uint4*>(static_cast<const bf16*>(a.x) + int64_t{t} * a.dim) + c);
    }
    *reinterpret_cast<uint4*>(to + t * stride + c * 16) = v;
  }
}

template <int kSlots>
__global__ void __launch_bounds__(kFewThreads, 1) FewW13Kernel(FewExpertsArgs a) {
  extern __shared__ __align__(128) char memory[];
  using Slot = FewSlot<false>;
  auto& shared = *reinterpret_cast<W13Shared*>(memory + kFewWarps * kSlots * Slot::kBytes);
  char* tokens = reinterpret_cast<char*>(&shared + 1);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int steps = (a.dim + Slot::kStepK - 1) / Slot::kStepK, own_steps = OwnSteps(steps);
  const uint32_t ring = SharedAddress(memory) + warp * kSlots * Slot::kBytes;

  const W13Items items(a, shared.jobs);
  W13Producer<kSlots> producer{ring, own_steps, static_cast<int>(blockIdx.x)};
  int issued = 0;
  for (; issued < kSlots - 1 && producer.item < items.shared_items; ++issued) {
    producer.Issue(items, items.shared_items);
  }
  PrepareJobs(a, shared.jobs);
  WaitForPrevious();
  AllowNext();
  if (threadIdx.x < 32) {
    FindJobs(a, shared.jobs);
  } else {
    LoadTokens(a, tokens);
  }
  __syncthreads();
  const int count = items.count();
  for (; issued < kSlots - 1; ++issued) producer.Issue(items, count);

  const int token = min(lane / 4, a.tokens - 1);
  const uint32_t x = SharedAddress(tokens) + token * FewXStride(a.dim) + lane % 4 * 16;
  int slot = 0, turn = 0;
  for (int item = blockIdx.x; item < count; item += gridDim.x, turn ^= 1) {
    MmaSums total = {};
    for (int i = 0; i < own_steps; ++i) {
      AwaitCopies<kSlots - 2>();
      const uint32_t at = ring + slot * Slot::kBytes;
      const uint32_t x_step = x + (i * kFewWarps + warp) * Slot::kStepK * 2;
      MultiplySlot<false>(at, total, [&](int part) { return x_step + part * 64; });
      slot = slot + 1 == kSlots ? 0 : slot + 1;
      producer.Issue(items, count);
    }
    ShareSums(shared.sums, turn, total);
    StoreHidden(a, items, item, shared.sums, turn);
  }
}

inline int64_t FewW13SharedBytes(const FewExpertsArgs& a, int slots) {
  return int64_t{kFewWarps} * slots * FewSlot<false>::kBytes +
         static_cast<int64_t>(sizeof(W13Shared)) + int64_t{a.tokens} * FewXStride(a.dim);
}

}  // namespace hadal::cuda
