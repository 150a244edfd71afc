#include <algorithm>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/experts/moe_rows.h"
#include "kernels/cuda/rows/quantise_row.cuh"

namespace hadal::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kUnroll = 8;  // loads in flight per thread
constexpr unsigned kAll = 0xffffffffu;
constexpr int kMeanwhileAtOnce = 4;                                            // items of a thread
constexpr int kMeanwhileItems = kThreads / kQuantiseLanes * kMeanwhileAtOnce;  // of a block

struct SortArgs {
  MoeChoices choices;
  MoeRows out;
  int tile_rows;
  bool in_pairs;
  QuantiseParams meanwhile;   // by the blocks behind the first
  unsigned meanwhile_blocks;  // of columns
};

// Tiles of an expert that are in pairs, and whether one is left over; as one number, so that one
// scan places both.
constexpr int kOdd = 1 << 20;
__device__ int SplitTiles(int tiles, bool in_pairs) {
  return in_pairs && tiles % 2 == 1 ? kOdd + tiles - 1 : tiles;
}

// Each warp owns consecutive rows, so that the order by token survives.
struct Chunk {
  int begin, end, size;
};
__device__ Chunk ChunkOf(int rows) {
  const int size = max(1, (rows + kThreads - 1) / kThreads) * 32;
  const int begin = min(rows, static_cast<int>(threadIdx.x / 32) * size);
  return {begin, min(rows, begin + size), size};
}

// Calls visit(row, expert), by whole warps; expert is -1 for nobody's row, -2 behind the last one.
template <typename Visit>
__device__ void ForEachRow(const MoeChoices& choices, const int32_t* local, Visit visit) {
  const Chunk chunk = ChunkOf(choices.rows());
  const int lane = threadIdx.x % 32;
  for (int base = chunk.begin; base < chunk.end; base += 32 * kUnroll) {
    int id[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int row = base + u * 32 + lane;
      id[u] = row < chunk.end ? __ldg(choices.ids + row) : -1;
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int row = base + u * 32 + lane;
      const bool known = id[u] >= 0 && id[u] < choices.experts;
      if (base + u * 32 >= chunk.end) break;
      visit(row, row >= chunk.end ? -2 : known ? local[id[u]] : -1);
    }
  }
}

// Exclusive sums of two arrays of `n` values in place, by one warp; a lane takes neighbouring
// values.
__device__ int2 ScanPairs(int* a, int* b, int n) {
  const int lane = threadIdx.x % 32, per = (n + 31) / 32, begin = min(n, lane * per),
            end = min(n, begin + per);
  int2 own = {0, 0};
  for (int i = begin; i < end; ++i) own = {own.x + a[i], own.y + b[i]};
  int2 sum = own;
  for (int d = 1; d < 32; d *= 2) {
    const int x = __shfl_up_sync(kAll, sum.x, d), y = __shfl_up_sync(kAll, sum.y, d);
    if (lane >= d) sum = {sum.x + x, sum.y + y};
  }
  int2 before = {sum.x - own.x, sum.y - own.y};
  for (int i = begin; i < end; ++i) {
    const int2 value = {a[i], b[i]};
    a[i] = before.x;
    b[i] = before.y;
    before = {before.x + value.x, before.y + value.y};
  }
  return {__shfl_sync(kAll, sum.x, 31), __shfl_sync(kAll, sum.y, 31)};
}

// Turns the counts of the first `warps` warps for an expert into what the warps before have; the
// total.
__device__ int CountsBefore(int* counts, int experts, int warps) {
  constexpr int kAtOnce = 8;
  int total = 0;
  for (int base = 0; base < warps; base += kAtOnce) {
    int own[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) own[i] = counts[(base + i) * experts];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      counts[(base + i) * experts] = total;
      total += own[i];
    }
  }
  return total;
}

// Tiles of expert e, by one warp.
__device__ void WriteTiles(const SortArgs& a, const int* first, const int* first_tile, int e) {
  const int experts = a.choices.local_experts;
  const int in_order = first_tile[e + 1] % kOdd - first_tile[e] % kOdd;
  const int odd = first_tile[e] / kOdd;  // experts before this one
  const int start = first_tile[e] % kOdd + odd / 2 * 2;
  int end = e + 1;  // behind the second of two odd experts
  if (first_tile[end] / kOdd > odd) {
    while (end < experts && first_tile[end] / kOdd < odd / 2 * 2 + 2) ++end;
  }
  for (int i = threadIdx.x % 32; first[e] + i * a.tile_rows < first[e + 1]; i += 32) {
    const int begin = first[e] + i * a.tile_rows;
    a.out.tiles[i < in_order ? start + i : first_tile[end] % kOdd + odd] = {
        e, begin, min(a.tile_rows, first[e + 1] - begin)};
  }
}

// The warps' counts become sums over the warps before, `first` the first sorted row of each expert;
// writes the tiles.
__device__ void PlaceExperts(const SortArgs& a, int* counts, int* first, int* first_tile) {
  const int experts = a.choices.local_experts;
  const int chunk = ChunkOf(a.choices.rows()).size, warps = (a.choices.rows() + chunk - 1) / chunk;
  for (int e = threadIdx.x; e < experts; e += kThreads) {
    const int total = CountsBefore(counts + e, experts, warps);
    first[e] = total;
    first_tile[e] = SplitTiles((total + a.tile_rows - 1) / a.tile_rows, a.in_pairs);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    const int2 totals = ScanPairs(first, first_tile, experts);
    if (threadIdx.x == 0) {
      first[experts] = totals.x;
      first_tile[experts] = totals.y;
      *a.out.num_rows = totals.x;
      *a.out.num_tiles = totals.y / kOdd + totals.y % kOdd;
    }
  }
  __syncthreads();
  for (int e = threadIdx.x / 32; e < experts; e += kWarps) WriteTiles(a, first, first_tile, e);
}

__device__ void RunSort(const SortArgs& a, int* shared) {
  int* counts = shared;                                    // [kWarps][local_experts]
  int* first = counts + kWarps * a.choices.local_experts;  // [local_experts + 1]
  int* first_tile = first + a.choices.local_experts + 1;
  int* local = first_tile + a.choices.local_experts + 1;  // [experts]
  for (int i = threadIdx.x; i < kWarps * a.choices.local_experts; i += kThreads) counts[i] = 0;
  for (int i = threadIdx.x; i < a.choices.experts; i += kThreads) {
    local[i] = __ldg(a.choices.local_index + i);  // there before the step
  }
  WaitForPrevious();
  __syncthreads();
  int* own = counts + threadIdx.x / 32 * a.choices.local_experts;
  const unsigned below = (1u << (threadIdx.x % 32)) - 1;
  ForEachRow(a.choices, local, [&](int, int expert) {
    if (expert >= 0) atomicAdd(&own[expert], 1);
  });
  __syncthreads();
  PlaceExperts(a, counts, first, first_tile);
  ForEachRow(a.choices, local, [&](int row, int expert) {
    const unsigned peers = __match_any_sync(kAll, expert);  // lanes of the same expert
    const int at = expert >= 0 ? first[expert] + own[expert] + __popc(peers & below) : -1;
    __syncwarp();
    if (expert >= 0) {
      a.out.source[at] = row / a.choices.top_k;
      if ((peers & below) == 0) own[expert] += __popc(peers);
    }
    if (expert != -2) a.out.row_of[row] = at;
    __syncwarp();
  });
}

// The kernel behind this one starts at once where there is room: it fetches weights meanwhile.
__global__ void __launch_bounds__(kThreads) SortRowsKernel(const __grid_constant__ SortArgs a) {
  extern __shared__ int shared[];
  AllowNext();
  if (blockIdx.x == 0) return RunSort(a, shared);
  WaitForPrevious();
  const unsigned first = (blockIdx.x - 1) * kMeanwhileItems + threadIdx.x / kQuantiseLanes;
  QuantiseItems<kMeanwhileAtOnce>(a.meanwhile, a.meanwhile_blocks, a.meanwhile.rows, first,
                                  kThreads / kQuantiseLanes);
}

int64_t MaxTiles(int64_t rows, int local_experts, int tile_rows) {
  return rows / tile_rows + std::min<int64_t>(rows, local_experts);
}

}  // namespace

MoeRows SortRows(const MoeChoices& choices, int tile_rows, CudaContext& context, bool in_pairs,
                 const QuantiseParams* meanwhile) {
  HADAL_CHECK(choices.local_experts <= kMaxLocalExperts && choices.experts <= 4096);
  HADAL_CHECK(choices.rows() < kOdd);
  MoeRows rows;
  rows.max_tiles = static_cast<int>(MaxTiles(choices.rows(), choices.local_experts, tile_rows));
  rows.source = context.scratch.Allocate<int32_t>(choices.rows());
  rows.row_of = context.scratch.Allocate<int32_t>(choices.rows());
  rows.tiles = context.scratch.Allocate<RowTile>(rows.max_tiles);
  rows.num_tiles = context.scratch.Allocate<int32_t>(2);
  rows.num_rows = rows.num_tiles + 1;
  const int64_t bytes =
      ((kWarps + 2) * int64_t{choices.local_experts} + 2 + choices.experts) * int64_t{sizeof(int)};
  static const bool once = [] {
    HADAL_CUDA(cudaFuncSetAttribute(SortRowsKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    96 * 1024));
    return true;
  }();
  (void)once;
  SortArgs args{choices, rows, tile_rows, in_pairs, {}, 0};
  int64_t items = 0;
  if (meanwhile != nullptr) {
    args.meanwhile = *meanwhile;
    args.meanwhile_blocks = static_cast<unsigned>(QuantiseBlocks(*meanwhile));
    items = int64_t{meanwhile->rows} * args.meanwhile_blocks;
  }
  const int64_t blocks = 1 + (items + kMeanwhileItems - 1) / kMeanwhileItems;
  Launch(SortRowsKernel, static_cast<unsigned>(blocks), kThreads, bytes, context, args);
  return rows;
}

int64_t SortRowsBytes(int64_t rows, int local_experts, int tile_rows) {
  return 2 * DeviceScratch::Aligned(rows * 4) + DeviceScratch::Aligned(8) +
         DeviceScratch::Aligned(MaxTiles(rows, local_experts, tile_rows) *
                                static_cast<int64_t>(sizeof(RowTile)));
}

}  // namespace hadal::cuda
