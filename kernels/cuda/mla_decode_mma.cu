#include "common/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mla_decode_mma.cuh"
#include "kernels/cuda/mla_flash.cuh"

// Absorbed attention of 16 (query, head) pairs at a time, latent 512 + rotary 64, bf16: bound by
// the reading of the cache. A CTA keeps up to three tiles of 64 keys in flight; a tile serves as keys and
// as values. Each of 8 warps makes the scores of 8 keys, with the queries in registers, then 64 of
// the 512 columns of the output; scores change hands in shared memory.

namespace hadal::cuda {
namespace {

using flash::RowState;
using namespace decode16;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// Rows of the tile that hold no key of the item would bring NaNs into the products.
__device__ __forceinline__ void ClearRows(char* stage, int valid) {
  for (int i = threadIdx.x; i < (kBlockSize - valid) * (kDim / 8); i += kThreads) {
    char* row = stage + (valid + i / (kDim / 8)) * kPitch;
    *reinterpret_cast<uint4*>(row + i % (kDim / 8) * 16) = make_uint4(0, 0, 0, 0);
  }
  FenceAsync();
  __syncthreads();
}

// Scores of the warp's 8 keys.
__device__ __forceinline__ void Scores(const char* stage, const uint32_t (&q)[kSteps][4],
                                       float (&s)[4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t from = SharedAddress(stage + (warp * 8 + lane % 8) * kPitch + lane / 8 * 16);
  float part[4][4] = {};
#pragma unroll
  for (int k = 0; k < kSteps; k += 2) {
    uint32_t b[4];
    LoadMatrices(from + k * 32, b);
    Mma(part[k % 4], q[k], b[0], b[1]);
    Mma(part[k % 4 + 1], q[k + 1], b[2], b[3]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) s[i] = (part[0][i] + part[1][i]) + (part[2][i] + part[3][i]);
}

// Turns scores into weights in shared memory; scales the sums so far.
__device__ __forceinline__ void Softmax(const DecodeArgs& a, int first_key, float (&s)[4],
                                        RowState& state, Shared& shared, float (&o)[8][4]) {
  const int warp = threadIdx.x / 32, row = threadIdx.x % 32 / 4;
  const int column = warp * 8 + threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool seen = first_key + column + i % 2 < state.limit[i / 2];
    s[i] = seen ? s[i] * a.scale_log2 : -INFINITY;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float m = fmaxf(s[2 * r], s[2 * r + 1]);
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
    if (threadIdx.x % 4 == 0) shared.of_warp[warp][row + 8 * r] = m;
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float m = state.m[r];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) m = fmaxf(m, shared.of_warp[w][row + 8 * r]);
    const float base = m == -INFINITY ? 0.0f : m;
    const float alpha = Exp2(state.m[r] - base);
    const float p0 = Exp2(s[2 * r] - base), p1 = Exp2(s[2 * r + 1] - base);
    state.m[r] = m;
    state.l[r] = state.l[r] * alpha + p0 + p1;
    *reinterpret_cast<uint32_t*>(shared.weights + (row + 8 * r) * kWeightPitch + column * 2) =
        PackBf16(p0, p1);
#pragma unroll
    for (int n = 0; n < 8; ++n) o[n][2 * r] *= alpha, o[n][2 * r + 1] *= alpha;
  }
  __syncthreads();
}

// o += weights times the warp's 64 columns of the tile.
__device__ __forceinline__ void AddValues(const char* stage, const char* weights,
                                          float (&o)[8][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t a_from = SharedAddress(weights + lane % 16 * kWeightPitch + lane / 16 * 16);
  const uint32_t b_from = SharedAddress(stage + lane % 16 * kPitch + warp * 128 + lane / 16 * 16);
#pragma unroll
  for (int k = 0; k < kBlockSize / 16; ++k) {
    uint32_t p[4];
    LoadMatrices(a_from + k * 32, p);
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      uint32_t b[4];
      LoadMatricesTransposed(b_from + k * 16 * kPitch + n * 16, b);
      Mma(o[n], p, b[0], b[1]);
      Mma(o[n + 1], p, b[2], b[3]);
    }
  }
}

__device__ __forceinline__ void WriteSegment(const DecodeArgs& a, const DecodeSegment& s,
                                             RowState& state, Shared& shared, float (&o)[8][4]) {
  const int warp = threadIdx.x / 32, row = threadIdx.x % 32 / 4;
  const int column = warp * 64 + threadIdx.x % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float l = state.l[r];
    l += __shfl_xor_sync(0xffffffffu, l, 1);
    l += __shfl_xor_sync(0xffffffffu, l, 2);
    if (threadIdx.x % 4 == 0) shared.of_warp[warp][row + 8 * r] = l;
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float l = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) l += shared.of_warp[w][row + 8 * r];
    StoreRow(a, s, row + 8 * r, column, o, r, state.m[r], l, warp == 0 && threadIdx.x % 4 == 0);
  }
}

__device__ __forceinline__ void RunSegment(const DecodeArgs& a, Shared& shared, Ring& ring,
                                           Producer& producer) {
  const DecodeSegment& s = shared.segment;
  const int empty = ring.Empty();
  uint4 pieces[kQueryPieces];
  FetchQueries(a, s.item, pieces);
  if (s.done == 0) ClearMerges<kThreads>(a);
  if (threadIdx.x == 0) NoteMerge(a, shared.run, s);
  uint32_t q[kSteps][4];
  SpreadQueries(shared.stages[empty], pieces, q);
  producer.Issue<true, true>(a, shared, empty);
  RowState state;
  float o[8][4] = {};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int pair = s.item.first + threadIdx.x % 32 / 4 + 8 * r;
    state.m[r] = -INFINITY;
    state.l[r] = 0;
    state.limit[r] = KeysOfPair(a, s.item, pair);
  }
  const int end = s.tile + s.tiles;
  for (int t = s.tile; t < end; ++t, ring.Advance()) {
    char* stage = shared.stages[ring.stage];
    BarrierWait(SharedAddress(&shared.full[ring.stage]), ring.parity);
    const int valid = s.item.keys - t * kBlockSize;
    if (valid < kBlockSize) ClearRows(stage, valid);
    float scores[4];
    Scores(stage, q, scores);
    Softmax(a, t * kBlockSize, scores, state, shared, o);
    AddValues(stage, shared.weights, o);
    __syncthreads();
    if (t + 1 < end) producer.Issue<true, true>(a, shared, ring.stage);
  }
  WriteSegment(a, s, state, shared, o);
}

#endif

__global__ void __launch_bounds__(kThreads, 1)
    MmaDecodeKernel(const __grid_constant__ DecodeArgs a, int stages) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  cudaTriggerProgrammaticLaunchCompletion();
  if (threadIdx.x == 0) {
    for (uint64_t& barrier : shared.full) BarrierInit(SharedAddress(&barrier), 1);
    FenceAsync();
  }
  // Rows and block tables were there before the step began, and so were the keys of earlier ones.
  const DecodeRun run = FindRun<kThreads>(a, shared.schedule);
  Producer producer{};
  if (run.tiles > 0) {
    producer.Enter(LoadItem(a, run.item));
    producer.tile = run.tile;
    producer.left = run.tiles;
    producer.LoadBlock(a);
    if (threadIdx.x == 0) shared.run = run, shared.segment = FirstSegment(a, run);
  }
  Producer early = producer;
  for (int stage = 0; stage + 1 < stages; ++stage) early.Issue<true, false>(a, shared, stage);
  __syncthreads();
  cudaGridDependencySynchronize();
  for (int stage = 0; stage + 1 < stages; ++stage) producer.Issue<false, true>(a, shared, stage);
  if (run.tiles == 0) {
    ClearMerges<kThreads>(a);
    return;
  }
  Ring ring{stages};
  while (true) {
    RunSegment(a, shared, ring, producer);
    const DecodeSegment& s = shared.segment;
    if (s.done + s.tiles == shared.run.tiles) break;
    __syncthreads();
    if (threadIdx.x == 0) NextSegment(a, shared.run, shared.segment);
    __syncthreads();
  }
#endif
}

}  // namespace

void MmaDecode(const MlaDecodeParams& p, CudaContext& context) {
  static const bool allowed = [] {
    HADAL_CUDA(cudaFuncSetAttribute(MmaDecodeKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    sizeof(Shared)));
    return true;
  }();
  HADAL_CHECK(allowed);
  DeviceScratch::Scope scope(context.scratch);
  DecodeArgs args;
  args.p = p;
  const int ctas = PrepareDecode(args, kRows, 1, context);
  // Where every run has one tile at most, CTAs without a third stage find room beside the blocks of
  // the kernel before, and begin while it runs.
  const bool short_runs = MostTiles(args) <= ctas / args.pieces;
  const int stages = short_runs ? 2 : kMaxStages;
  Launch(MmaDecodeKernel, dim3(ctas), dim3(kThreads),
         sizeof(Shared) - (kMaxStages - stages) * kStageBytes, context, args, stages);
  HADAL_CUDA_LAUNCHED();
  MergeDecode(args, ctas, context);
}

int64_t MmaDecodeScratchBytes() { return FastDecodeScratchBytes(kRows); }

}  // namespace hadal::cuda
