#pragma once

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/experts/moe_few.cuh"
#include "kernels/cuda/experts/moe_mma.cuh"

namespace hadal::cuda {

// hidden = silu(gate x) * (up x) for every local expert that a token chose, and for the shared MLP.
// An item is 8 gate rows and their 8 up rows. All tokens lie in shared memory.

inline constexpr int kW13Warps = 8, kW13Threads = 32 * kW13Warps;
template <typename W>
using W13Step = FewStep<W, 2>;

// Bytes between tokens in shared memory: quarter warps that read 16 bytes of 2 tokens meet no bank
// twice.
template <typename W>
constexpr int FewXStride(int dim) {
  return W13Step<W>::Count(dim) * W13Step<W>::kColumns * 2 + (kIsF8<W> ? 16 : 64);
}
// Of scales in front of FP8's tokens, [blocks of 128 columns][kFewTokens] float.
template <typename W>
constexpr int FewXScaleBytes(int dim) {
  return kIsF8<W> ? W13Step<W>::Count(dim) * W13Step<W>::kBlocks * kFewTokens * 4 : 0;
}

struct W13Shared {
  FewSums<kW13Warps> sums;
  FewJobs jobs;
};

// An item of job -1 is of the shared MLP.
struct W13Item {
  int job, tile;
};

struct W13Items {
  const FewExpertsArgs& a;
  const FewJobs& jobs;
  int shared_tiles, tiles;  // of the shared MLP, and of one expert

  __device__ W13Items(const FewExpertsArgs& args, const FewJobs& found)
      : a(args),
        jobs(found),
        shared_tiles((args.shared_width + 7) / 8),
        tiles((args.width + 7) / 8) {}
  __device__ W13Item First() const { return Settled({-1, static_cast<int>(blockIdx.x)}); }
  __device__ W13Item Next(W13Item i) const {
    return Settled({i.job, i.tile + static_cast<int>(gridDim.x)});
  }
  template <typename W>
  __device__ __forceinline__ typename W13Step<W>::Rows Rows(W13Item i) const {
    using At = typename W13Step<W>::Rows;
    const int first = i.tile * 8;
    return i.job < 0 ? At(a.shared13, 0, first, a.shared_width + first)
                     : At(a.w13, jobs.expert[i.job], first, a.width + first);
  }

 private:
  // Tiles behind the last of a job are of the next; of jobs there may be fewer.
  __device__ W13Item Settled(W13Item i) const {
    for (int own = i.job < 0 ? shared_tiles : tiles; i.tile >= own; own = tiles) {
      i.tile -= own;
      ++i.job;
    }
    return i;
  }
};

// What a warp copies next: of every item each kW13Warps-th step, in rounds of all warps.
template <typename W>
struct W13Producer {
  int steps;  // of an item
  int warp;
  W13Item item;
  FewSlot slot;
  int round = 0;
  typename W13Step<W>::Rows rows;

  // Nothing behind the last of `jobs`, nor where this warp has no step while others have. Always
  // one group, for the slot that was read last.
  __device__ __forceinline__ void Issue(const W13Items& items, int jobs) {
    if (item.job < jobs) {
      if (round == 0) rows = items.Rows<W>(item);
      const int step = StepOf(round);
      if (step < steps) rows.Copy(slot.at, step);
      if (++round == Rounds()) {
        round = 0;
        item = items.Next(item);
      }
    }
    slot.Next(W13Step<W>::kSlotBytes);
    CommitCopies();
  }

  __device__ __forceinline__ int StepOf(int r) const { return r * kW13Warps + warp; }
  __device__ __forceinline__ int Rounds() const { return (steps + kW13Warps - 1) / kW13Warps; }
};

__device__ __forceinline__ void StoreHidden(const FewExpertsArgs& a, const FewJobs& jobs,
                                            W13Item item, const FewSums<kW13Warps>& sums,
                                            int turn) {
  const int pair = static_cast<int>(threadIdx.x);
  if (pair >= 64) return;
  const int lane = pair / 2, column = item.tile * 8 + lane / 4, token = lane % 4 * 2 + pair % 2;
  if (token >= a.tokens) return;
  bf16* to = a.shared_hidden + token * a.shared_stride + column;
  if (item.job >= 0) {
    const int row = jobs.row[item.job][token];
    if (row < 0) return;
    to = a.hidden + row * a.hidden_stride + column;
  }
  const float gate = sums.Add(turn, lane * 4 + pair % 2);
  const float up = sums.Add(turn, lane * 4 + 2 + pair % 2);
  // Up to the stride: w2 reads zeros behind the last column.
  const bool inside = column < (item.job < 0 ? a.shared_width : a.width);
  *to = FromFloat<bf16>(inside ? SiluMul(gate, up) : 0.0f);
}

// Tokens to shared memory, zeros behind dim; by all warps but the first.
__device__ inline void LoadTokens(const FewExpertsArgs& a, char* to) {
  const int stride = FewXStride<bf16>(a.dim),
            chunks = W13Step<bf16>::Count(a.dim) * W13Step<bf16>::kColumns / 8;
  for (int i = threadIdx.x - 32; i < a.tokens * chunks; i += kW13Threads - 32) {
    const int t = i / chunks, c = i % chunks;
    uint4 v = {0, 0, 0, 0};
    if (c * 8 < a.dim) {
      v = __ldcg(
          reinterpret_cast<const uint4*>(static_cast<const bf16*>(a.x) + int64_t{t} * a.dim) + c);
    }
    *reinterpret_cast<uint4*>(to + t * stride + c * 16) = v;
  }
}
// The same in f16, with their scales.
__device__ inline void LoadHalfTokens(const FewExpertsArgs& a, float* scales, char* to) {
  constexpr int kAtOnce = 4, kWarps = kW13Warps - 1;  // loads in flight
  const int blocks = W13Step<fp8>::Count(a.dim) * W13Step<fp8>::kBlocks, count = a.tokens * blocks;
  const int lane = threadIdx.x % 32;
  for (int first = static_cast<int>(threadIdx.x / 32) - 1; first < count;
       first += kAtOnce * kWarps) {
    uint2 x[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int i = first + u * kWarps, column = i % blocks * 128 + lane * 4;
      x[u] = {0, 0};
      if (i < count && column < a.dim) {
        x[u] = __ldcg(reinterpret_cast<const uint2*>(static_cast<const bf16*>(a.x) +
                                                     int64_t{i / blocks} * a.dim + column));
      }
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int i = first + u * kWarps, t = i / blocks, block = i % blocks;
      if (i >= count) break;
      const float down = Halves(x[u]);
      *reinterpret_cast<uint2*>(to + t * FewXStride<fp8>(a.dim) + block * 256 + lane * 8) = x[u];
      if (lane == 0) scales[block * kFewTokens + t] = down;
    }
  }
}

// Of a block, for the lane's token: x points at its row and the lane's first columns.
template <typename W>
__device__ __forceinline__ void TokensAt(uint32_t x, int block, FewTokens<W>& to) {
  constexpr int kPartBytes = 128 / sizeof(W);
  const uint32_t at = x + block * (kFewParts * kPartBytes);
#pragma unroll
  for (int part = 0; part < kFewParts; ++part) {
    if constexpr (kIsF8<W>) {
      HalfTokens(LoadShared16(at + part * kPartBytes), LoadShared16(at + part * kPartBytes + 16),
                 to[part]);
    } else {
      const uint4 v[1] = {LoadShared16(at + part * kPartBytes)};
      to[part] = TokensOf<W>(v);
    }
  }
}

// total += a step's products. scales: of FP8's tokens.
template <typename W>
__device__ __forceinline__ void AddW13Step(const typename W13Step<W>::Weights& w, int step,
                                           uint32_t x, const float* scales, MmaSums& total) {
#pragma unroll
  for (int b = 0; b < W13Step<W>::kBlocks; ++b) {
    const int block = step * W13Step<W>::kBlocks + b;
    FewTokens<W> operands;
    TokensAt<W>(x, block, operands);
    float2 factor = {1, 1};
    if constexpr (kIsF8<W>) {
      factor = *reinterpret_cast<const float2*>(scales + block * kFewTokens + threadIdx.x % 4 * 2);
    }
    AddBlock<W>(w, b, operands, factor, total);
  }
}

template <typename W, int kSlots>
__global__ void __launch_bounds__(kW13Threads, 2) FewW13Kernel(FewExpertsArgs a) {
  extern __shared__ __align__(128) char memory[];
  constexpr int kRingBytes = kSlots * W13Step<W>::kSlotBytes;
  auto& shared = *reinterpret_cast<W13Shared*>(memory + kW13Warps * kRingBytes);
  auto* scales = reinterpret_cast<float*>(&shared + 1);
  char* tokens = reinterpret_cast<char*>(&shared + 1) + FewXScaleBytes<W>(a.dim);
  const int lane = threadIdx.x % 32, steps = W13Step<W>::Count(a.dim);

  const W13Items items(a, shared.jobs);
  FewSlot slot(SharedAddress(memory) + threadIdx.x / 32 * kRingBytes, kRingBytes);
  W13Producer<W> producer{steps, WarpIndex(), items.First(), slot};
  int issued = 0;
  for (; issued < kSlots && producer.item.job < 0; ++issued) producer.Issue(items, 0);
  PrepareJobs(a, shared.jobs);
  WaitForPrevious();
  AllowNext();
  if (threadIdx.x < 32) {
    FindJobs(a, shared.jobs);
  } else if constexpr (kIsF8<W>) {
    LoadHalfTokens(a, scales, tokens);
  } else {
    LoadTokens(a, tokens);
  }
  __syncthreads();
  const int jobs = shared.jobs.count, rounds = producer.Rounds();
  for (; issued < kSlots; ++issued) producer.Issue(items, jobs);

  const int token = min(lane / 4, a.tokens - 1);
  const uint32_t x =
      SharedAddress(tokens) + token * FewXStride<W>(a.dim) + lane % 4 * (32 / sizeof(W));
  int turn = 0;
  for (W13Item item = items.First(); item.job < jobs; item = items.Next(item), turn ^= 1) {
    MmaSums total = {};
    for (int round = 0; round < rounds; ++round) {
      const int step = producer.StepOf(round);
      AwaitCopies<kSlots - 1>();
      if (kIsF8<W>) __syncwarp();  // scales of other lanes
      const typename W13Step<W>::Weights w(slot.at);
      slot.Next(W13Step<W>::kSlotBytes);
      if (kIsF8<W>) __syncwarp();
      producer.Issue(items, jobs);
      if (step < steps) AddW13Step<W>(w, step, x, scales, total);
    }
    shared.sums.Share(turn, total);
    StoreHidden(a, shared.jobs, item, shared.sums, turn);
  }
}

template <typename W, int kSlots>
int64_t FewW13SharedBytes(const FewExpertsArgs& a) {
  return int64_t{kW13Warps} * kSlots * W13Step<W>::kSlotBytes + int64_t{sizeof(W13Shared)} +
         FewXScaleBytes<W>(a.dim) + int64_t{a.tokens} * FewXStride<W>(a.dim);
}

}  // namespace hadal::cuda
