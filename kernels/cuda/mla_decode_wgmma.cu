#include "common/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mla_decode_turns.cuh"

// Absorbed attention of 64 (query, head) pairs at a time on Hopper, latent 512 + rotary 64, bf16.
// Two warpgroups take two tiles of 64 keys at a time, which serve as keys and as values: each makes
// the scores of one and keeps 256 of the 512 columns of the output. A third one runs the copy
// engine.

namespace hadal::cuda {
namespace {

using namespace decode64;

constexpr int kWholeTiles = 8;

#if HADAL_SM90A

__device__ __forceinline__ void WriteSegment(const DecodeArgs& a, const DecodeSegment& s, int group,
                                             Shared& shared, const Work& w) {
  const int row = RowOfThread(), column = group * 256 + threadIdx.x % 4 * 2;
  float l[2], other[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    l[r] = w.state.l[r] + __shfl_xor_sync(0xffffffffu, w.state.l[r], 1);
    l[r] += __shfl_xor_sync(0xffffffffu, l[r], 2);
  }
  Leave(l, shared.sums[group]);
  SyncConsumers();
  Fetch(shared.sums[group ^ 1], other);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    l[r] += other[r];
    const bool leader = group == 0 && threadIdx.x % 4 == 0;
    StoreRow(a, s, row + 8 * r, column, w.o[0], r, w.state.m[r], l[r], leader);
    StoreRow(a, s, row + 8 * r, column + 128, w.o[1], r, w.state.m[r], l[r], false);
  }
}

__device__ __forceinline__ void BeginSegment(const DecodeArgs& a, const DecodeSegment& s,
                                             Shared& shared, Work& w) {
  if (threadIdx.x == 0) NoteMerge(a, shared.run, s);
  LoadQueries(a, s.item, shared);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    w.state.m[r] = -INFINITY;
    w.state.l[r] = 0;
    w.state.limit[r] = KeysOfPair(a, s.item, s.item.first + RowOfThread() + 8 * r);
  }
}

__device__ __forceinline__ void RunSegment(const DecodeArgs& a, Shared& shared, Phases& phases) {
  const DecodeSegment& s = shared.segment;
  const int group = threadIdx.x / 128, end = s.tile + s.tiles;
  Work w = {};
  BeginSegment(a, s, shared, w);
  for (int tile = s.tile; tile < end; tile += 2) {
    const bool both = tile + 1 < end;
    const int valid = s.item.keys - tile * kBlockSize;
    if (valid < kBlockSize) ClearBehind(valid, 0, shared, phases);
    if (both && valid < 2 * kBlockSize) ClearBehind(valid - kBlockSize, 1, shared, phases);
    if (group == 0) {
      FirstTurn(a, s, tile, both, shared, phases, w);
    } else if (both) {
      SecondTurn(a, s, tile + 1, shared, phases, w);
    } else {
      SecondTurn(shared, phases, w);
    }
    phases.Advance(both);
  }
  WriteSegment(a, s, group, shared, w);
}

__device__ void Consume(const DecodeArgs& a, Shared& shared) {
  if (threadIdx.x == 0) shared.segment = FirstSegment(a, shared.run);
  Phases phases;
  while (true) {
    SyncConsumers();
    RunSegment(a, shared, phases);
    const DecodeSegment& s = shared.segment;
    if (s.done + s.tiles == shared.run.tiles) break;
    SyncConsumers();
    if (threadIdx.x == 0) NextSegment(a, shared.run, shared.segment);
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
      for (int part = 0; part < kParts; ++part) {
        BarrierInit(SharedAddress(&shared.full[i][part]), 1);
        BarrierInit(SharedAddress(&shared.empty[i][part]), 4);  // the warps that read it last
      }
    }
    for (uint64_t& weights : shared.weights) BarrierInit(SharedAddress(&weights), 128);
    FenceAsync();
  }
  // Rows and block tables were there before the step began.
  const DecodeRun run = FindRun<kThreads>(a, shared.schedule);
  if (threadIdx.x == 0) shared.run = run;
  if (threadIdx.x >= kProducer) {
    GiveRegisters<24>();
    if (threadIdx.x == kProducer && run.tiles > 0) Produce(a, cache, run, shared);
  } else {
    TakeRegisters<240>();
    cudaGridDependencySynchronize();
    ClearMerges<kConsumers>(a);
    if (run.tiles > 0) Consume(a, shared);
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
  const int ctas = PrepareDecode(args, kRows, kStages, kWholeTiles, context);
  // How many rows the cache has is not known here, nor needed: block tables name rows that exist.
  const CUtensorMap cache = TensorMap2d(p.cache, kDim, int64_t{1} << 30, kDim * 2, kBlockSize);
  Launch(WgmmaDecodeKernel, dim3(ctas), dim3(kThreads), kSharedBytes, context, args, cache);
  HADAL_CUDA_LAUNCHED();
  MergeDecode(args, ctas, context);
}

int64_t WgmmaDecodeScratchBytes() { return FastDecodeScratchBytes(kRows); }

}  // namespace hadal::cuda
