#include "common/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mla_decode_wgmma.cuh"
#include "kernels/cuda/mla_flash.cuh"

// Absorbed attention of 64 (query, head) pairs at a time on Hopper, latent 512 + rotary 64, bf16.
// Two warpgroups share a tile of 64 keys, which serves as keys and as values: each makes the scores
// of 32 keys and keeps 256 of the 512 columns of the output; weights change hands in shared memory.
// A third one runs the copy engine.

namespace hadal::cuda {
namespace {

using namespace decode64;

#if HADAL_SM90A

// Starts s = queries times the warpgroup's 32 keys.
__device__ __forceinline__ void StartScores(Shared& shared, int stage, int group,
                                            float (&s)[4][4]) {
  const uint32_t queries = SharedAddress(shared.queries);
  const uint32_t keys = SharedAddress(shared.tiles[stage]) + group * 32 * 128;
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    const uint32_t at = k / 4 * kBoxBytes + k % 4 * 32;
    WgmmaRows32(s, RowsDescriptor(queries + at), RowsDescriptor(keys + at), k > 0);
  }
  WgmmaCommit();
}

// Starts o += weights times the warpgroup's 256 columns.
__device__ __forceinline__ void StartValues(Shared& shared, int stage, int group,
                                            float (&o)[2][16][4]) {
  const uint32_t weights = SharedAddress(shared.weights);
  const uint32_t values = SharedAddress(shared.tiles[stage]) + group * 4 * kBoxBytes;
#pragma unroll
  for (int k = 0; k < kBlockSize / 16; ++k) {
    const uint64_t p = RowsDescriptor(weights + k * 32);
    WgmmaRowsColumns128(o[0], p, ColumnsDescriptor(values + k * 2048, kBoxBytes));
    WgmmaRowsColumns128(o[1], p, ColumnsDescriptor(values + 2 * kBoxBytes + k * 2048, kBoxBytes));
  }
  WgmmaCommit();
}

// Row of the piece: the first of the thread's two, the other is 8 further on.
__device__ __forceinline__ int RowOfThread() {
  return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
}

// Turns scores into weights in shared memory; o is to be multiplied by alpha.
__device__ __forceinline__ void Softmax(const DecodeArgs& a, int first_key, int group,
                                        float (&s)[4][4], flash::RowState& state, Shared& shared,
                                        float (&alpha)[2]) {
  const int row = RowOfThread(), lane = threadIdx.x % 4;
  flash::Mask(first_key + group * 32, state, s);
  float m[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    m[r] = s[0][2 * r];
#pragma unroll
    for (int n = 0; n < 4; ++n) m[r] = fmaxf(m[r], fmaxf(s[n][2 * r], s[n][2 * r + 1]));
    m[r] = fmaxf(m[r], __shfl_xor_sync(0xffffffffu, m[r], 1));
    m[r] = fmaxf(m[r], __shfl_xor_sync(0xffffffffu, m[r], 2)) * a.scale_log2;
    if (lane == 0) shared.of_group[group][row + 8 * r] = m[r];
  }
  SyncConsumers();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float other = shared.of_group[group ^ 1][row + 8 * r];
    m[r] = fmaxf(state.m[r], fmaxf(m[r], other));
    const float base = m[r] == -INFINITY ? 0.0f : m[r];
    alpha[r] = Exp2(state.m[r] - base);
    float l = 0;
    char* weights = shared.weights + (row + 8 * r) * 128 + lane * 4;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float p0 = Exp2(fmaf(s[n][2 * r], a.scale_log2, -base));
      const float p1 = Exp2(fmaf(s[n][2 * r + 1], a.scale_log2, -base));
      l += p0 + p1;
      *reinterpret_cast<uint32_t*>(weights + ((group * 4 + n) ^ row % 8) * 16) = PackBf16(p0, p1);
    }
    state.m[r] = m[r];
    state.l[r] = fmaf(state.l[r], alpha[r], l);
  }
  FenceAsync();
  SyncConsumers();
}

__device__ __forceinline__ void WriteSegment(const DecodeArgs& a, const DecodeSegment& s, int group,
                                             const flash::RowState& state, Shared& shared,
                                             const float (&o)[2][16][4]) {
  const int row = RowOfThread(), column = group * 256 + threadIdx.x % 4 * 2;
  float l[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    l[r] = state.l[r] + __shfl_xor_sync(0xffffffffu, state.l[r], 1);
    l[r] += __shfl_xor_sync(0xffffffffu, l[r], 2);
    if (threadIdx.x % 4 == 0) shared.of_group[group][row + 8 * r] = l[r];
  }
  SyncConsumers();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    l[r] += shared.of_group[group ^ 1][row + 8 * r];
    const bool leader = group == 0 && threadIdx.x % 4 == 0;
    StoreRow(a, s, row + 8 * r, column, o[0], r, state.m[r], l[r], leader);
    StoreRow(a, s, row + 8 * r, column + 128, o[1], r, state.m[r], l[r], false);
  }
}

__device__ __forceinline__ void RunSegment(const DecodeArgs& a, Shared& shared, Ring& ring) {
  const DecodeSegment& s = shared.segment;
  const int group = threadIdx.x / 128;
  LoadQueries(a, s.item, shared);
  flash::RowState state;
  float o[2][16][4] = {}, scores[4][4] = {}, alpha[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int pair = s.item.first + RowOfThread() + 8 * r;
    state.m[r] = -INFINITY;
    state.l[r] = 0;
    state.limit[r] = KeysOfPair(a, s.item, pair);
  }
  // Softmax of the scores of tile t, and what has to be done before the next products.
  const auto weigh = [&](int t) {
    WgmmaWait<0>();
    HoldRegisters(scores);
    Softmax(a, t * kBlockSize, group, scores, state, shared, alpha);
    flash::Rescale(alpha, o[0]);
    flash::Rescale(alpha, o[1]);
    HoldRegisters(scores);
    HoldRegisters(o[0]);
    HoldRegisters(o[1]);
    WgmmaFence();
  };
  const auto release = [&] {
    HoldRegisters(o[0]);
    HoldRegisters(o[1]);
    if (threadIdx.x % 32 == 0) BarrierArrive(SharedAddress(&shared.empty[ring.stage]));
    ring.Advance();
  };
  const int end = s.tile + s.tiles;
  WaitTile(s, s.tile, shared, ring);
  HoldRegisters(scores);
  WgmmaFence();
  StartScores(shared, ring.stage, group, scores);
  for (int t = s.tile; t + 1 < end; ++t) {
    weigh(t);
    StartValues(shared, ring.stage, group, o);
    Ring next = ring;
    next.Advance();
    WaitTile(s, t + 1, shared, next);
    WgmmaFence();
    StartScores(shared, next.stage, group, scores);
    WgmmaWait<1>();
    release();
  }
  weigh(end - 1);
  StartValues(shared, ring.stage, group, o);
  WgmmaWait<0>();
  release();
  WriteSegment(a, s, group, state, shared, o);
}

__device__ void Consume(const DecodeArgs& a, Shared& shared) {
  if (threadIdx.x == 0) EnterSegment(a, shared.run, true, shared.segment);
  Ring ring;
  while (true) {
    SyncConsumers();
    RunSegment(a, shared, ring);
    const DecodeSegment& s = shared.segment;
    if (s.done + s.tiles == shared.run.tiles) break;
    SyncConsumers();
    if (threadIdx.x == 0) EnterSegment(a, shared.run, false, shared.segment);
  }
}

#endif

__global__ void __launch_bounds__(kThreads, 1)
    WgmmaDecodeKernel(const __grid_constant__ DecodeArgs a,
                      const __grid_constant__ CUtensorMap cache) {
#if HADAL_SM90A
  extern __shared__ char memory[];
  Shared& shared =
      *reinterpret_cast<Shared*>(memory + ((1024 - SharedAddress(memory) % 1024) % 1024));
  cudaTriggerProgrammaticLaunchCompletion();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(SharedAddress(&shared.full[i]), 1);
      BarrierInit(SharedAddress(&shared.empty[i]), kConsumers / 32);
    }
    FenceAsync();
  }
  cudaGridDependencySynchronize();
  ClearMerges<kThreads>(a);
  const DecodeRun run = FindRun<kThreads>(a, shared.schedule);
  if (run.tiles == 0) return;
  if (threadIdx.x == 0) shared.run = run;
  if (threadIdx.x >= kProducer) {
    GiveRegisters<24>();
    if (threadIdx.x == kProducer) Produce(a, cache, run, shared);
  } else {
    TakeRegisters<240>();
    Consume(a, shared);
  }
#endif
}

constexpr int kSharedBytes = sizeof(Shared) + 1024;
static_assert(kSharedBytes <= 227 * 1024);

}  // namespace

void WgmmaDecode(const MlaDecodeParams& p, CudaContext& context) {
  static const bool allowed = [] {
    HADAL_CUDA(cudaFuncSetAttribute(WgmmaDecodeKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    kSharedBytes));
    return true;
  }();
  HADAL_CHECK(allowed);
  DeviceScratch::Scope scope(context.scratch);
  DecodeArgs args;
  args.p = p;
  const int ctas = PrepareDecode(args, kRows, context);
  // How many rows the cache has is not known here, nor needed: block tables name rows that exist.
  const CUtensorMap cache = TensorMap2d(p.cache, kDim, int64_t{1} << 30, kDim * 2, kBlockSize);
  Launch(WgmmaDecodeKernel, dim3(ctas), dim3(kThreads), kSharedBytes, context, args, cache);
  HADAL_CUDA_LAUNCHED();
  MergeDecode(args, ctas, context);
}

int64_t WgmmaDecodeScratchBytes() { return FastDecodeScratchBytes(kRows); }

}  // namespace hadal::cuda
