#include <algorithm>
#include <array>

#include "common/check.h"
#include "common/rounding.h"
#include "kernels/cuda/attention/mla_decode_cluster.cuh"
#include "kernels/cuda/attention/mla_decode_part.cuh"
#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/shared.cuh"

// Absorbed attention of 16 (query, head) pairs at a time where items are few and not long: each is
// the work of a cluster of up to 16 CTAs. They take equal parts of its keys and merge what they
// have made in each other's shared memory, so that no second kernel is needed.

namespace hadal::cuda {
namespace {

using namespace decode16;

constexpr int kMostTiles = 8;   // of a CTA, where items may differ in length
constexpr int kMergeTiles = 2;  // that take as long as the second kernel of the other schedule

// One CTA alone keeps three tiles in flight, others two.
constexpr Stages StagesOfCluster(int ctas, int64_t tiles) {
  return StagesOf(ctas == 1 ? kMaxStages : kMaxStages - 1, tiles);
}
// What other CTAs send comes behind the queries.
constexpr int SharedBytes(int ctas, int groups, Stages stages) {
  return PartBytes(stages) + (ctas == 1 ? 0 : ExchangeBytes(ctas, groups));
}
constexpr int MostShared(int ctas, int groups) {
  return SharedBytes(ctas, groups, StagesOfCluster(ctas, kMaxStages));
}
static_assert(std::max(MostShared(1, 1), MostShared(kMaxCluster, 1)) <= 227 * 1024);

// Grid: (row, piece, cluster of the group, CTA of the cluster).
template <int kCtas, int kGroups>
__global__ void __launch_bounds__(kThreads, 1)
    ClusterDecodeKernel(const __grid_constant__ DecodeArgs a, Stages stages) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Exchange<kCtas, kGroups> exchange(QueriesOf(shared, stages) + kQueryBytes);
  AllowNext();
  const int item = static_cast<int>(blockIdx.x) / (kCtas * kGroups);
  const Part part(a, kCtas, item * kCtas + exchange.Rank());
  if (threadIdx.x == 0) {
    for (uint64_t& barrier : shared.full) BarrierInit(SharedAddress(&barrier), 1);
    if (kCtas > 1) exchange.Expect(part.parts);
    FenceAsync();
  }
  FenceBarrierInit();
  ArriveClusterRelaxed();
  BegunPart begun = Begin(a, part, stages, shared);
  WaitForPrevious();
  if (part.parts == 0) return AwaitCluster();
  if (part.tiles > 0) {
    SumsOf<exchange.kTiles> o = {};
    AddPart(a, part, stages, shared, begun, exchange.FirstColumn(), o);
    if constexpr (kCtas == 1) {
      return WriteSegment(a, {part.item, 0, part.tiles, 0}, begun.state, shared, o);
    }
    AwaitCluster();  // their barriers are ready
    exchange.SendSums(o);
    exchange.SendWeights(begun.state, shared);
  } else {
    AwaitCluster();
  }
  exchange.Merge(a, part.item, part.parts);
#endif
}

using Kernel = void (*)(DecodeArgs, Stages);

// A shape of the kernel, and how many clusters of it the card runs at once.
struct Clusters {
  int ctas, groups;
  Kernel kernel;
  int at_once = 0;

  void Prepare() {
    HADAL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    MostShared(ctas, groups)));
    HADAL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    cudaLaunchAttribute attribute{.id = cudaLaunchAttributeClusterDimension};
    attribute.val.clusterDim = {static_cast<unsigned>(ctas), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(ctas));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = static_cast<size_t>(MostShared(ctas, groups));
    config.attrs = &attribute;
    config.numAttrs = 1;
    HADAL_CUDA(cudaOccupancyMaxActiveClusters(&at_once, kernel, &config));
  }
};

// Of one size, most groups first; sizes rise.
const std::array<Clusters, 9>& AllClusters() {
  static const std::array<Clusters, 9> all = [] {
    std::array<Clusters, 9> result{{{1, 1, ClusterDecodeKernel<1, 1>},
                                    {2, 1, ClusterDecodeKernel<2, 1>},
                                    {4, 1, ClusterDecodeKernel<4, 1>},
                                    {8, 4, ClusterDecodeKernel<8, 4>},
                                    {8, 2, ClusterDecodeKernel<8, 2>},
                                    {8, 1, ClusterDecodeKernel<8, 1>},
                                    {16, 4, ClusterDecodeKernel<16, 4>},
                                    {16, 2, ClusterDecodeKernel<16, 2>},
                                    {16, 1, ClusterDecodeKernel<16, 1>}}};
    for (Clusters& c : result) c.Prepare();
    return result;
  }();
  return all;
}

// The largest that serve all items at once and of which no CTA but one is without tiles; of those
// the ones of most groups.
const Clusters& ChooseClusters(const MlaDecodeParams& p) {
  DecodeArgs args;
  args.p = p;
  SetPieces(args, kRows);
  const int64_t items = int64_t{p.rows.num_rows} * args.pieces;
  const int64_t tiles = MostTiles(args) / p.rows.num_rows;
  const Clusters* best = &AllClusters().front();
  for (const Clusters& c : AllClusters()) {
    if (c.ctas > best->ctas && c.ctas / 2 < tiles && items * c.groups <= c.at_once) best = &c;
  }
  return *best;
}

}  // namespace

int DecodeCluster(const MlaDecodeParams& p) { return ChooseClusters(p).ctas; }

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
  DecodeArgs args;
  args.p = p;
  SetPieces(args, kRows);
  const Clusters& c = ChooseClusters(p);
  HADAL_CHECK(c.at_once > 0);
  const Stages stages = StagesOfCluster(c.ctas, CeilDiv(MostTiles(args) / p.rows.num_rows, c.ctas));
  const int ctas = p.rows.num_rows * args.pieces * c.groups * c.ctas;
  LaunchClusters(c.kernel, dim3(static_cast<unsigned>(ctas)), c.ctas, dim3(kThreads),
                 static_cast<size_t>(SharedBytes(c.ctas, c.groups, stages)), context, args, stages);
  HADAL_CUDA_LAUNCHED();
}

}  // namespace hadal::cuda
