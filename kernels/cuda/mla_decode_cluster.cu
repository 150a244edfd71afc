#include <algorithm>
#include <array>
#include <bit>

#include "common/check.h"
#include "common/rounding.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mla_decode_cluster.cuh"

// Absorbed attention of 16 (query, head) pairs at a time where items are few and not long: each is
// the work of a cluster of up to 16 CTAs. They take equal parts of its keys and merge what they
// have made in each other's shared memory, so that no second kernel is needed.

namespace hadal::cuda {
namespace {

using namespace decode16;

constexpr int kMostTiles = 8;   // of a CTA, where items may differ in length
constexpr int kMergeTiles = 2;  // that take as long as the second kernel of the other schedule

// Stages for tiles; of these that are filled before the queries come, which take the place behind
// them. What other CTAs send comes behind the queries. One CTA alone keeps three tiles in flight,
// others two.
struct Stages {
  int tiles, ahead;
};
constexpr Stages StagesOf(int ctas, int64_t tiles) {
  const int most = ctas == 1 ? kMaxStages : kMaxStages - 1;
  const int stages = static_cast<int>(std::min<int64_t>(tiles, most));
  return {stages, std::min(stages, kMaxStages - 1)};
}
constexpr int SharedBytes(int ctas, Stages stages) {
  const int queries = stages.ahead < stages.tiles ? kStageBytes : kQueryBytes;
  return static_cast<int>(sizeof(Shared)) - (kMaxStages - stages.ahead) * kStageBytes + queries +
         (ctas == 1 ? 0 : ExchangeBytes(ctas));
}
constexpr int MostShared(int ctas) { return SharedBytes(ctas, StagesOf(ctas, kMaxStages)); }
static_assert(std::max(MostShared(1), MostShared(kMaxCluster)) <= 227 * 1024);

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// The CTA's part of its cluster's item.
struct Part {
  DecodeItem item;
  int tile, tiles;
  int parts;  // CTAs that have tiles
};

template <int kCtas>
__device__ __forceinline__ Part FindPart(const DecodeArgs& a) {
  const int index = static_cast<int>(blockIdx.x) / kCtas;
  Part part{LoadItem(a, index / a.pieces, index % a.pieces), 0, 0, 0};
  const int tiles = part.item.tiles, each = (tiles + kCtas - 1) / kCtas;
  part.tile = min(tiles, Exchange<kCtas>::Rank() * each);
  part.tiles = min(each, tiles - part.tile);
  part.parts = each > 0 ? (tiles + each - 1) / each : 0;
  return part;
}

// What needs no waiting: the tiles ahead but for keys of this step, rows behind the last key.
__device__ __forceinline__ void Begin(const DecodeArgs& a, const Part& part, int ahead,
                                      Shared& shared, Producer<false>& producer) {
#pragma unroll 1
  for (int stage = 0; stage < ahead; ++stage) producer.Issue<true, false>(a, shared, stage);
  const int valid = part.item.keys - (part.tile + part.tiles - 1) * kBlockSize;
  if (part.tiles > 0 && part.tiles <= ahead && valid < kBlockSize) {
    ClearRows(shared.stages[part.tiles - 1], valid);
  }
}
// The keys of this step among these.
__device__ __forceinline__ void Complete(const DecodeArgs& a, const Part& part, int ahead,
                                         Shared& shared, Producer<false>& producer) {
  if ((part.tile + min(part.tiles, ahead)) * kBlockSize <= part.item.row.start_pos) return;
#pragma unroll 1
  for (int stage = 0; stage < ahead; ++stage) producer.Issue<false, true>(a, shared, stage);
}

// What was computed before stays there.
__device__ __forceinline__ void Hold(QueryRow& query, RowState& state) {
  asm volatile(""
               : "+l"(query.latent), "+l"(query.rope), "+r"(state.limit[0]), "+r"(state.limit[1]));
}

#endif

// Grid: (row, piece, CTA of the cluster).
template <int kCtas>
__global__ void __launch_bounds__(kThreads, 1)
    ClusterDecodeKernel(const __grid_constant__ DecodeArgs a, Stages stages) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  char* queries = shared.stages[stages.ahead];
  const Exchange<kCtas> exchange(queries + kQueryBytes);
  cudaTriggerProgrammaticLaunchCompletion();
  // Rows and block tables were there before the step began, and so were the keys of earlier ones.
  const Part part = FindPart<kCtas>(a);
  if (threadIdx.x == 0) {
    for (uint64_t& barrier : shared.full) BarrierInit(SharedAddress(&barrier), 1);
    if (kCtas > 1) exchange.Expect(part.parts);
    FenceAsync();
  }
  ArriveCluster();
  Producer<false> producer{};
  producer.Enter(part.item);
  producer.tile = part.tile;
  producer.left = part.tiles;
  producer.LoadBlock(a);
  Producer late = producer;
  __syncthreads();
  Begin(a, part, stages.ahead, shared, producer);
  QueryRow query = QueryOfThread(a, part.item);
  RowState state = StartRows(a, part.item);
  Hold(query, state);
  AwaitCluster();
  cudaGridDependencySynchronize();
  if (part.parts == 0) return;
  if (part.tiles > 0) {
    uint4 pieces[kQueryPieces];
    FetchQueries(query, pieces);
    Complete(a, part, stages.ahead, shared, late);
    uint32_t q[kSteps][4];
    SpreadQueries(queries, pieces, q);
    if (stages.ahead < stages.tiles) {
      __syncthreads();
      producer.Issue<true, true>(a, shared, stages.ahead);
    }
    Ring ring{stages.tiles};
    Sums o = {};
    AddTiles(a, part.item, part.tile, part.tile + part.tiles, part.tiles <= stages.ahead, q, shared,
             ring, producer, state, o);
    if (kCtas == 1) return WriteSegment(a, {part.item, 0, part.tiles, 0}, state, shared, o);
    exchange.SendSums(o);
    exchange.SendWeights(state, shared);
  }
  exchange.Merge(a, part.item, part.parts);
#endif
}

using Kernel = void (*)(DecodeArgs, Stages);
constexpr std::array<Kernel, 5> kKernels = {ClusterDecodeKernel<1>, ClusterDecodeKernel<2>,
                                            ClusterDecodeKernel<4>, ClusterDecodeKernel<8>,
                                            ClusterDecodeKernel<16>};

// How many clusters of 2^i CTAs the card runs at once.
int ClustersAtOnce(int log2) {
  static const std::array<int, kKernels.size()> counts = [] {
    std::array<int, kKernels.size()> result{};
    for (size_t i = 0; i < kKernels.size(); ++i) {
      const int ctas = 1 << i;
      HADAL_CUDA(cudaFuncSetAttribute(kKernels[i], cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      MostShared(ctas)));
      HADAL_CUDA(
          cudaFuncSetAttribute(kKernels[i], cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
      cudaLaunchAttribute attribute{.id = cudaLaunchAttributeClusterDimension};
      attribute.val.clusterDim = {static_cast<unsigned>(ctas), 1, 1};
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(static_cast<unsigned>(ctas));
      config.blockDim = dim3(kThreads);
      config.dynamicSmemBytes = static_cast<size_t>(MostShared(ctas));
      config.attrs = &attribute;
      config.numAttrs = 1;
      HADAL_CUDA(cudaOccupancyMaxActiveClusters(&result[i], kKernels[i], &config));
    }
    return result;
  }();
  return counts[static_cast<size_t>(log2)];
}

}  // namespace

int DecodeCluster(const MlaDecodeParams& p) {
  DecodeArgs args;
  args.p = p;
  SetPieces(args, kRows);
  const int64_t items = int64_t{p.rows.num_rows} * args.pieces;
  const int64_t tiles = MostTiles(args) / p.rows.num_rows;
  int log2 = 0;
  while ((1 << log2) < std::min<int64_t>(tiles, kMaxCluster) && items <= ClustersAtOnce(log2 + 1)) {
    ++log2;
  }
  return 1 << log2;
}

bool ClustersPay(const MlaDecodeParams& p, int cluster, const CudaContext& context) {
  DecodeArgs args;
  args.p = p;
  SetPieces(args, kRows);
  const int64_t all = MostTiles(args) * args.pieces;
  const int64_t items = int64_t{p.rows.num_rows} * args.pieces;
  const int64_t each = CeilDiv(all / items, cluster);
  return items <= context.sm_count && each <= kMostTiles &&
         each <= CeilDiv(all, context.sm_count) + kMergeTiles;
}

void ClusterDecode(const MlaDecodeParams& p, CudaContext& context) {
  HADAL_CHECK(ClustersAtOnce(0) > 0);
  DecodeArgs args;
  args.p = p;
  SetPieces(args, kRows);
  const int ctas = DecodeCluster(p);
  const Stages stages = StagesOf(ctas, CeilDiv(MostTiles(args) / p.rows.num_rows, ctas));
  const Kernel kernel =
      kKernels[static_cast<size_t>(std::countr_zero(static_cast<unsigned>(ctas)))];
  const dim3 grid(static_cast<unsigned>(p.rows.num_rows * args.pieces * ctas));
  LaunchClusters(kernel, grid, ctas, dim3(kThreads), static_cast<size_t>(SharedBytes(ctas, stages)),
                 context, args, stages);
  HADAL_CUDA_LAUNCHED();
}

}  // namespace hadal::cuda
