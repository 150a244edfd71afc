#include "common/check.h"
#include "kernels/cuda/attention/mla_decode_tiles.cuh"
#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/shared.cuh"

// Absorbed attention of 16 (query, head) pairs at a time, latent 512 + rotary 64, bf16: bound by
// the reading of the cache. A CTA keeps up to three tiles of 64 keys in flight; a tile serves as
// keys and as values. The keys of all rows are cut into equal runs.

namespace hadal::cuda {
namespace {

using namespace decode16;

constexpr int kWholeTiles = 16;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

__device__ __forceinline__ void RunSegment(const DecodeArgs& a, Shared& shared, Ring& ring,
                                           Producer<true>& producer) {
  const DecodeSegment& s = shared.segment;
  const int empty = ring.Empty();
  uint4 pieces[kQueryPieces];
  FetchQueries(QueryOfThread(a, s.item), pieces);
  if (s.done == 0) ClearMerges<kThreads>(a);
  if (threadIdx.x == 0) NoteMerge(a, shared.run, s);
  uint32_t q[kSteps][4];
  SpreadQueries(shared.stages[empty], pieces, q);
  FenceAsync();
  __syncthreads();
  producer.Issue<true, true>(a, shared, empty);
  RowState state = StartRows(a, s.item);
  Sums o = {};
  AddTiles(a, s.item, s.tile, s.tile + s.tiles, false, q, shared, ring, producer, state, 0, o);
  WriteSegment(a, s, state, shared, o);
}

#endif

__global__ void __launch_bounds__(kThreads, 1)
    MmaDecodeKernel(const __grid_constant__ DecodeArgs a, int stages) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  AllowNext();
  if (threadIdx.x == 0) {
    for (uint64_t& barrier : shared.full) BarrierInit(SharedAddress(&barrier), 1);
    FenceAsync();
  }
  // Rows and block tables were there before the step began, and so were the keys of earlier ones.
  const DecodeRun run = FindRun<kThreads>(a, shared.schedule);
  Producer<true> producer{};
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
  WaitForPrevious();
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
    if (threadIdx.x == 0) shared.segment = NextSegment(a, shared.run, shared.segment);
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
  const int ctas = PrepareDecode(args, kRows, 1, kWholeTiles, context);
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
