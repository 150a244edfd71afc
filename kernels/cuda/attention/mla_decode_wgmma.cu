#include "common/check.h"
#include "kernels/cuda/attention/mla_decode_turns.cuh"
#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/hopper.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/shared.cuh"

// Absorbed attention of 64 (query, head) pairs at a time on Hopper, latent 512 + rotary 64, bf16.
// Two warpgroups take two tiles of 64 keys at a time, which serve as keys and as values: each makes
// the scores of one and keeps 256 of the 512 columns of the output. A third one runs the copy
// engine.

namespace hadal::cuda {
namespace {

using namespace decode64;

constexpr int kWholeTiles = 8;

#if HADAL_SM90A

__device__ __forceinline__ void AddTiles(const DecodeArgs& a, const DecodeSegment& s,
                                         Shared& shared, Phases& phases, Work& w) {
  const int group = threadIdx.x / 128, end = s.tile + s.tiles;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    w.state.m[r] = -INFINITY;
    w.state.l[r] = 0;
    w.state.limit[r] = KeysOfPair(a, s.item, s.item.first + RowOfThread() + 8 * r);
  }
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
}

// The sums of weights of both warpgroups. Nobody needs the queries any more.
__device__ __forceinline__ void AddSums(Shared& shared, Work& w) {
  const int group = threadIdx.x / 128;
  float other[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    w.state.l[r] += __shfl_xor_sync(0xffffffffu, w.state.l[r], 1);
    w.state.l[r] += __shfl_xor_sync(0xffffffffu, w.state.l[r], 2);
  }
  Leave(w.state.l, shared.sums[group]);
  SyncConsumers();
  Fetch(shared.sums[group ^ 1], other);
#pragma unroll
  for (int r = 0; r < 2; ++r) w.state.l[r] += other[r];
}

__device__ __forceinline__ void StoreRows(const DecodeArgs& a, const DecodeSegment& s,
                                          const Work& w) {
  const int group = threadIdx.x / 128, row = RowOfThread();
  const int column = group * 256 + threadIdx.x % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float m = w.state.m[r], l = w.state.l[r];
    StoreRow(a, s, row + 8 * r, column, w.o[0], r, m, l, group == 0 && threadIdx.x % 4 == 0);
    StoreRow(a, s, row + 8 * r, column + 128, w.o[1], r, m, l, false);
  }
}

// The queries of the next segment come while the outputs of one go.
__device__ __forceinline__ void Consume(const DecodeArgs& a, Shared& shared) {
  SyncConsumers();
  FetchQueries(a, shared.segments[0].item, shared);
  Phases phases;
  for (int at = 0, next; true; at = next) {
    next = at == 2 ? 0 : at + 1;
    const DecodeSegment& s = shared.segments[at];
    const bool last = s.done + s.tiles == shared.run.tiles;
    if (threadIdx.x == 0) {
      NoteMerge(a, shared.run, s);
      if (!last) shared.segments[next] = NextSegment(a, shared.run, s);
    }
    AwaitQueries();
    Work w = {};
    AddTiles(a, s, shared, phases, w);
    AddSums(shared, w);
    if (!last) FetchQueries(a, shared.segments[next].item, shared);
    StoreRows(a, s, w);
    if (last) return;
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
  AllowNext();
  if (threadIdx.x == kProducer) PrefetchMap(&cache);
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
  if (threadIdx.x == 0 && run.tiles > 0) {
    shared.run = run;
    shared.segments[0] = FirstSegment(a, run);
  }
  if (threadIdx.x >= kProducer) {
    GiveRegisters<24>();
    if (threadIdx.x == kProducer && run.tiles > 0) Produce(a, cache, run, shared);
  } else {
    TakeRegisters<240>();
    WaitForPrevious();
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
