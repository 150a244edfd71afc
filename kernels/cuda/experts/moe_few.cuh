#pragma once

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/experts/moe_few_step.cuh"
#include "kernels/cuda/experts/moe_mma.cuh"
#include "kernels/cuda/weights/weight_view.cuh"

namespace hadal::cuda {

// Experts for at most 8 tokens: the columns of every product are the tokens, each warp streams its
// own share of k, and the warps of a block add up their sums at the end of an item (16 weight
// rows).

inline constexpr int kFewTokens = 8;
inline constexpr int kFewRows = 64;                     // (token, choice) pairs
inline constexpr int kFewExperts = 512;                 // of the model
inline constexpr int64_t kFewSharedBytes = 227 * 1024;  // that a block can have
// An SM has 228 KB, of which every block takes 1 KB more than it asks for. The least of which no
// two blocks fit an SM.
inline constexpr int64_t kFewAloneBytes = 113 * 1024 + 128;
// What is left beside a block of that many.
constexpr int64_t FewRoomBeside(int64_t bytes) { return 226 * 1024 - bytes; }

// The same for all lanes, which the compiler cannot tell of threadIdx.x / 32.
__device__ __forceinline__ int WarpIndex() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 32), 0);
}

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
  int16_t row[kFewRows][kFewTokens];   // token * top_k + choice; -1 then
  int count;
  int expert[kFewRows];
  int job_of[kFewExperts];  // of an expert; while they are sought, its first row or kFewRows
  int16_t local[kFewExperts];
};

// Does not depend on earlier kernels.
__device__ inline void PrepareJobs(const FewExpertsArgs& a, FewJobs& jobs) {
  for (int i = threadIdx.x; i < kFewExperts; i += blockDim.x) {
    jobs.job_of[i] = kFewRows;
    if (i < a.experts) jobs.local[i] = static_cast<int16_t>(a.local_index[i]);
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
    jobs.row[job][i / a.top_k] = static_cast<int16_t>(i);
    jobs.weight[job][i / a.top_k] = weight[u];
  }
}

// Sums of the warps, used in turn so that one barrier per item is enough.
template <int kWarps>
struct FewSums {
  float at[2][kWarps][128];

  __device__ __forceinline__ void Share(int turn, const MmaSums& total) {
    float4* to = reinterpret_cast<float4*>(at[turn][threadIdx.x / 32]) + threadIdx.x % 32;
    *to = {total.at[0], total.at[1], total.at[2], total.at[3]};
    __syncthreads();
  }
  __device__ __forceinline__ float Add(int turn, int index) const {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += at[turn][w][index];
    return sum;
  }
};

}  // namespace hadal::cuda
