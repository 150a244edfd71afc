#include <algorithm>
#include <array>

#include "common/check.h"
#include "common/rounding.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mla_decode_cluster.cuh"

// Absorbed attention of 16 (query, head) pairs at a time where items are few and not long: each is
// the work of a cluster of up to 16 CTAs. They take equal parts of its keys and merge what they have
// made in each other's shared memory. Without a second kernel one sequence takes a third less time.

namespace hadal::cuda {
namespace {

using namespace decode16;

constexpr int kMostTiles = 8;   // of a CTA, where items may differ in length
constexpr int kMergeTiles = 4;  // that take as long as the second kernel of the other schedule

struct ClusterArgs {
  int ctas = 1;    // of a cluster
  int stages = 0;  // for tiles
  // Of these that are filled before the queries come, which take the place behind them. What other
  // CTAs send comes behind the queries.
  int ahead = 0;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// The CTA's part of its cluster's item.
struct Part {
  DecodeItem item;
  int tile, tiles;
  int parts;  // CTAs that have tiles
};

__device__ __forceinline__ Part FindPart(const DecodeArgs& a, int ctas) {
  const int index = static_cast<int>(blockIdx.x) / ctas, rank = static_cast<int>(blockIdx.x) % ctas;
  Part part{LoadItem(a, index / a.pieces, index % a.pieces), 0, 0, 0};
  const int each = (part.item.tiles + ctas - 1) / ctas;
  part.tile = min(part.item.tiles, rank * each);
  part.tiles = min(each, part.item.tiles - part.tile);
  part.parts = each > 0 ? (part.item.tiles + each - 1) / each : 0;
  return part;
}

// Rows behind the last key, where the copy engine has none to bring.
__device__ __forceinline__ void ClearEarly(const Part& part, int ahead, Shared& shared) {
  const int valid = part.item.keys - (part.tile + part.tiles - 1) * kBlockSize;
  if (part.tiles > 0 && part.tiles <= ahead && valid < kBlockSize) {
    ClearRows(shared.stages[part.tiles - 1], valid);
  }
}

#endif

// Grid: (row, piece, CTA of the cluster).
__global__ void __launch_bounds__(kThreads, 1)
    ClusterDecodeKernel(const __grid_constant__ DecodeArgs a, ClusterArgs c) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  char* queries = shared.stages[c.ahead];
  const Exchange exchange(c.ctas, queries + kQueryBytes);
  cudaTriggerProgrammaticLaunchCompletion();
  // Rows and block tables were there before the step began, and so were the keys of earlier ones.
  const Part part = FindPart(a, c.ctas);
  if (threadIdx.x == 0) {
    for (uint64_t& barrier : shared.full) BarrierInit(SharedAddress(&barrier), 1);
    if (c.ctas > 1) exchange.Expect(part.parts);
    FenceAsync();
  }
  ArriveCluster();
  Producer<false> producer{};
  producer.Enter(part.item);
  producer.tile = part.tile;
  producer.left = part.tiles;
  producer.LoadBlock(a);
  Producer early = producer;
  __syncthreads();
  for (int stage = 0; stage < c.ahead; ++stage) early.Issue<true, false>(a, shared, stage);
  ClearEarly(part, c.ahead, shared);
  const QueryRow query = QueryOfThread(a, part.item);
  AwaitCluster();
  cudaGridDependencySynchronize();
  if (part.parts == 0) return;
  RowState state;
  Sums o = {};
  if (part.tiles > 0) {
    uint4 pieces[kQueryPieces];
    FetchQueries(query, pieces);
    for (int stage = 0; stage < c.ahead; ++stage) producer.Issue<false, true>(a, shared, stage);
    uint32_t q[kSteps][4];
    SpreadQueries(queries, pieces, q);
    if (c.ahead < c.stages) {
      __syncthreads();
      producer.Issue<true, true>(a, shared, c.ahead);
    }
    Ring ring{c.stages};
    AddTiles(a, part.item, part.tile, part.tile + part.tiles, part.tiles <= c.ahead, q, shared,
             ring, producer, state, o);
    if (c.ctas == 1) return WriteSegment(a, {part.item, 0, part.tiles, 0}, state, shared, o);
    exchange.SendSums(o);
    exchange.SendWeights(state, shared);
  }
  exchange.Merge(a, part.item, part.parts);
#endif
}

constexpr int SharedBytes(const ClusterArgs& c) {
  const int queries = c.ahead < c.stages ? kStageBytes : kQueryBytes;
  return static_cast<int>(sizeof(Shared)) - (kMaxStages - c.ahead) * kStageBytes + queries +
         (c.ctas == 1 ? 0 : ExchangeBytes(c.ctas));
}

// One CTA alone keeps three tiles in flight, others two.
constexpr ClusterArgs Shape(int ctas, int64_t tiles) {
  const int most = ctas == 1 ? kMaxStages : kMaxStages - 1;
  const int stages = static_cast<int>(std::min<int64_t>(tiles, most));
  return {ctas, stages, std::min(stages, kMaxStages - 1)};
}
constexpr int kMostShared = std::max(SharedBytes(Shape(1, 8)), SharedBytes(Shape(kMaxCluster, 8)));
static_assert(kMostShared <= 227 * 1024);

cudaLaunchConfig_t ClusterConfig(int ctas, cudaLaunchAttribute& attribute) {
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(ctas);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(ctas));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kMostShared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return config;
}

// How many clusters of 2^i CTAs the card runs at once.
const std::array<int, 5>& ClustersAtOnce() {
  static const std::array<int, 5> counts = [] {
    HADAL_CUDA(cudaFuncSetAttribute(ClusterDecodeKernel,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared));
    HADAL_CUDA(cudaFuncSetAttribute(ClusterDecodeKernel,
                                    cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    std::array<int, 5> result{};
    for (int i = 0; i < 5; ++i) {
      cudaLaunchAttribute attribute;
      const cudaLaunchConfig_t config = ClusterConfig(1 << i, attribute);
      HADAL_CUDA(cudaOccupancyMaxActiveClusters(&result[static_cast<size_t>(i)],
                                                ClusterDecodeKernel, &config));
    }
    return result;
  }();
  return counts;
}

}  // namespace

int DecodeCluster(const MlaDecodeParams& p) {
  DecodeArgs args;
  args.p = p;
  SetPieces(args, kRows);
  const int64_t items = int64_t{p.rows.num_rows} * args.pieces;
  const int64_t tiles = MostTiles(args) / p.rows.num_rows;
  int log2 = 0;
  while ((1 << log2) < std::min<int64_t>(tiles, kMaxCluster) &&
         items <= ClustersAtOnce()[static_cast<size_t>(log2) + 1]) {
    ++log2;
  }
  return 1 << log2;
}

bool ClustersPay(const MlaDecodeParams& p, int cluster, const CudaContext& context) {
  DecodeArgs args;
  args.p = p;
  SetPieces(args, kRows);
  const int64_t all = MostTiles(args) * args.pieces;
  const int64_t items = int64_t{p.rows.num_rows} * args.pieces, each = CeilDiv(all / items, cluster);
  return items <= context.sm_count && each <= kMostTiles &&
         each <= CeilDiv(all, context.sm_count) + kMergeTiles;
}

void ClusterDecode(const MlaDecodeParams& p, CudaContext& context) {
  DecodeArgs args;
  args.p = p;
  SetPieces(args, kRows);
  const int ctas = DecodeCluster(p);
  const ClusterArgs c = Shape(ctas, CeilDiv(MostTiles(args) / p.rows.num_rows, ctas));
  const dim3 grid(static_cast<unsigned>(p.rows.num_rows * args.pieces * ctas));
  LaunchClusters(ClusterDecodeKernel, grid, ctas, dim3(kThreads),
                 static_cast<size_t>(SharedBytes(c)), context, args, c);
  HADAL_CUDA_LAUNCHED();
}

}  // namespace hadal::cuda
