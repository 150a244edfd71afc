#pragma once

#include "kernels/cuda/moe_mma.cuh"
#include "kernels/cuda/read_once.cuh"

namespace hadal::cuda {

// Experts for at most 8 tokens: the columns of every product are the tokens, each warp streams its
// own share of k through a ring of shared memory that only it reads, and the warps of a block add
// up their sums at the end of an item (16 weight rows). Weights are bf16; moe_few_f8.cuh shares the
// jobs.

inline constexpr int kFewTokens = 8;
inline constexpr int kFewRows = 64;      // (token, choice) pairs
inline constexpr int kFewExperts = 512;  // of the model
inline constexpr int kFewWarps = 8;
inline constexpr int kFewThreads = 32 * kFewWarps;
inline constexpr int64_t kFewSharedBytes = 227 * 1024;  // that a block can have
// An SM has 228 KB, of which every block takes 1 KB more than it asks for. The least of which no
// two blocks fit an SM.
inline constexpr int64_t kFewAloneBytes = 113 * 1024 + 128;
// What is left beside a block of that many.
constexpr int64_t FewRoomBeside(int64_t bytes) { return 226 * 1024 - bytes; }

struct FewExpertsArgs {
  const void* x = nullptr;  // [tokens, dim] bf16
  const int32_t* ids = nullptr;
  const float* weights = nullptr;
  const int32_t* local_index = nullptr;
  WeightView w13, w2, shared13, shared2;
  bf16* hidden = nullptr;         // [tokens, top_k, hidden_stride]
  bf16* shared_hidden = nullptr;  // [tokens, shared_stride]
  bf16* out = nullptr;            // [tokens, dim]
  int tokens = 0;
  int top_k = 0;
  int experts = 0;
  int dim = 0;
  int width = 0;
  int shared_width = 0;   // 0: there is none
  int hidden_stride = 0;  // width rounded up to 8; what is beyond width is 0
  int shared_stride = 0;
};

// The experts of this step that live here, in order of first appearance.
struct alignas(16) FewJobs {
  float weight[kFewRows][kFewTokens];  // 0 where a token did not choose the expert
  int row[kFewRows][kFewTokens];       // token * top_k + choice; -1 then
  int count;
  int expert[kFewRows];
  int job_of[kFewExperts];  // of an expert; while they are sought, its first row or kFewRows
  int local[kFewExperts];
};

// Does not depend on earlier kernels.
__device__ inline void PrepareJobs(const FewExpertsArgs& a, FewJobs& jobs) {
  for (int i = threadIdx.x; i < kFewExperts; i += blockDim.x) {
    jobs.job_of[i] = kFewRows;
    if (i < a.experts) jobs.local[i] = a.local_index[i];
  }
  for (int i = threadIdx.x; i < kFewRows * kFewTokens; i += blockDim.x) {
    jobs.row[i / kFewTokens][i % kFewTokens] = -1;
    jobs.weight[i / kFewTokens][i % kFewTokens] = 0;
  }
  __syncthreads();
}

// By one warp, after PrepareJobs(); the others need a barrier.
__device__ inline void FindJobs(const FewExpertsArgs& a, FewJobs& jobs) {
  constexpr int kPerLane = kFewRows / 32;
  const int lane = threadIdx.x % 32, rows = a.tokens * a.top_k;
  int expert[kPerLane], before = 0;
  float weight[kPerLane];
#pragma unroll
  for (int u = 0; u < kPerLane; ++u) {
    const int i = u * 32 + lane, id = i < rows ? __ldcg(a.ids + i) : -1;
    weight[u] = i < rows ? __ldcg(a.weights + i) : 0.0f;
    expert[u] = id >= 0 && id < a.experts ? jobs.local[id] : -1;
    if (expert[u] >= 0) atomicMin(&jobs.job_of[expert[u]], i);
  }
  __syncwarp();
  bool first[kPerLane];
#pragma unroll
  for (int u = 0; u < kPerLane; ++u) {
    first[u] = expert[u] >= 0 && jobs.job_of[expert[u]] == u * 32 + lane;
  }
  __syncwarp();
#pragma unroll
  for (int u = 0; u < kPerLane; ++u) {
    const unsigned all = __ballot_sync(0xffffffffu, first[u]);
    const int job = before + __popc(all & ((1u << lane) - 1));
    if (first[u]) {
      jobs.expert[job] = expert[u];
      jobs.job_of[expert[u]] = job;
    }
    before += __popc(all);
  }
  if (lane == 0) jobs.count = before;
  __syncwarp();
#pragma unroll
  for (int u = 0; u < kPerLane; ++u) {
    if (expert[u] < 0) continue;
    const int i = u * 32 + lane, job = jobs.job_of[expert[u]];
    jobs.row[job][i / a.top_k] = i;
    jobs.weight[job][i / a.top_k] = weight[u];
  }
}

// A ring slot of one warp: 128 bytes of each of 16 weight rows, where a lane finds what it copied.
template <bool kWithActivations>
struct FewSlot {
  static constexpr int kStepK = 64;
  static constexpr int kParts = 2;                       // of 64 bytes a row
  static constexpr int kWeightBytes = kParts * 2 * 512;  // [part][row half][lane] 16
  static constexpr int kXBytes = kWithActivations ? kParts * 512 : 0;
  static constexpr int kBytes = kWeightBytes + kXBytes;
};

// Where a lane reads: rows g and g + 8 of an item.
struct FewSource {
  const char* row[2];
  bool valid[2];
  int bytes;  // of a row
};

__device__ __forceinline__ FewSource SourceOf(const WeightView& w, int matrix, int row0, int row1,
                                              int limit0, int limit1) {
  FewSource s;
  const int row[2] = {row0, row1}, limit[2] = {limit0, limit1};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    s.valid[h] = row[h] < limit[h];
    const int inside = s.valid[h] ? row[h] : 0;
    s.row[h] = reinterpret_cast<const char*>(w.matrix<bf16>(matrix) + inside * w.stride);
  }
  s.bytes = static_cast<int>(w.stride * sizeof(bf16));
  return s;
}

template <bool kWithActivations>
__device__ __forceinline__ void CopyWeights(uint32_t slot, const FewSource& from, int step) {
  using Slot = FewSlot<kWithActivations>;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int part = 0; part < Slot::kParts; ++part) {
    const int at = step * 128 + part * 64 + lane % 4 * 16;
    const bool inside = at < from.bytes;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      CopyOnce16(slot + (part * 2 + h) * 512 + lane * 16, from.row[h] + (inside ? at : 0),
                 inside && from.valid[h]);
    }
  }
}

// acc += the slot's weights times activations: x_at(part) is where the lane's vector of a part lies
// in shared memory. Four sums in turn, as a product waits for the one before it.
template <bool kWithActivations, typename XAt>
__device__ __forceinline__ void MultiplySlot(uint32_t slot, MmaSums& acc, XAt x_at) {
  constexpr int kParts = FewSlot<kWithActivations>::kParts;
  const int lane = threadIdx.x % 32;
  WeightOperand<bf16> w[kParts];
  TokenOperand<bf16> tokens[kParts];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const uint4 w0 = LoadShared16(slot + part * 2 * 512 + lane * 16);
    const uint4 w1 = LoadShared16(slot + (part * 2 + 1) * 512 + lane * 16);
    const uint4 x[1] = {LoadShared16(x_at(part))};
    w[part] = WeightsOf<bf16>(w0, w1);
    tokens[part] = TokensOf<bf16>(x);
  }
  MmaSums other[2 * kParts - 1] = {};
#pragma unroll
  for (int i = 0; i < kMmas<bf16>; ++i) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int chain = i % 2 * kParts + part;
      const uint32_t(&a)[4] = w[part].a[i];
      const uint32_t(&b)[2] = tokens[part].b[i];
      Mma(chain == 0 ? acc : other[chain - 1], a[0], a[1], a[2], a[3], b[0], b[1]);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    acc.at[j] += (other[0].at[j] + other[1].at[j]) + other[2].at[j];
  }
}

// Steps of this warp among `steps`.
__device__ __forceinline__ int OwnSteps(int steps) {
  return (steps - static_cast<int>(threadIdx.x / 32) + kFewWarps - 1) / kFewWarps;
}

// Sums of the warps: [2][kFewWarps][128], used in turn so that one barrier per item is enough.
using FewSums = float[2][kFewWarps][128];

__device__ __forceinline__ void ShareSums(FewSums& sums, int turn, const MmaSums& total) {
  float4* to = reinterpret_cast<float4*>(sums[turn][threadIdx.x / 32]) + threadIdx.x % 32;
  *to = {total.at[0], total.at[1], total.at[2], total.at[3]};
  __syncthreads();
}
__device__ __forceinline__ float AddSums(const FewSums& sums, int turn, int at) {
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kFewWarps; ++w) sum += sums[turn][w][at];
  return sum;
}

}  // namespace hadal::cuda
