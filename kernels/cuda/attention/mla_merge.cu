#include <algorithm>

#include "common/check.h"
#include "common/rounding.h"
#include "kernels/cuda/attention/mla_decode_rows.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/warp.cuh"

namespace hadal::cuda {
namespace {

constexpr int kGroup = kDecodeLatent / 4;  // threads, four elements each
constexpr int kGroups = 4;
constexpr int kManyMerges = 8;  // CTAs per merge below which a row is shared by all groups

// Where row `row` of the j-th part of a merge lies.
__device__ __forceinline__ int64_t PartRow(const DecodeArgs& a, int4 merge, int j, int row) {
  const int cta = (merge.y + j) * a.pieces + Lane(a);
  const int slot = cta * 2 + (j == 0 ? merge.w : 0);
  return static_cast<int64_t>(slot) * a.piece_rows + row;
}

__device__ __forceinline__ float4 LoadPart(const DecodeArgs& a, int4 merge, int j, int row,
                                           int at) {
  return reinterpret_cast<const float4*>(a.part_o + PartRow(a, merge, j, row) * kDecodeLatent)[at];
}

// Elements 4 at .. 4 at + 3 of one (query, head) pair: of every kStep-th part from the first on,
// the sum times 2^(m_j - m) / l, m and l of all. By whole warps: lane j % 32 has m and l of part j.
// The first parts are fetched beside these.
template <int kStep>
__device__ float4 WeightedSum(const DecodeArgs& a, int4 merge, int row, int at, int first) {
  constexpr int kAhead = 8;
  static_assert(kAhead * kStep <= 32);
  constexpr int kChunks = kMaxRuns / 32;
  const int lane = threadIdx.x % 32, count = merge.z - merge.y + 1;
  float4 ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (first + i * kStep < count) ahead[i] = LoadPart(a, merge, first + i * kStep, row, at);
  }
  float2 ml[kChunks];
  float m = -INFINITY, l = 0, weight[kChunks];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int j = c * 32 + lane;
    ml[c] = j < count ? a.part_ml[PartRow(a, merge, j, row)] : make_float2(-INFINITY, 0);
    m = fmaxf(m, ml[c].x);
  }
  m = WarpMax(m);
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    weight[c] = ExpDiff(ml[c].x, m);
    l += ml[c].y * weight[c];
  }
  const float inverse = 1.0f / WarpSum(l);
  float4 sum = make_float4(0, 0, 0, 0);
  const auto add = [&](float of_lane, int j, float4 o) {
    const float w = __shfl_sync(0xffffffffu, of_lane, j % 32) * inverse;
    sum = make_float4(sum.x + w * o.x, sum.y + w * o.y, sum.z + w * o.z, sum.w + w * o.w);
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (first + i * kStep < count) add(weight[0], first + i * kStep, ahead[i]);
  }
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int end = min(count, c * 32 + 32);
#pragma unroll 4
    for (int j = first + c * 32 + (c == 0 ? kAhead * kStep : 0); j < end; j += kStep) {
      add(weight[c], j, LoadPart(a, merge, j, row, at));
    }
  }
  return sum;
}

// Grid: (merge, rows in turns). A group of threads takes a row.
__global__ void __launch_bounds__(kGroup* kGroups, 2) MergeKernel(DecodeArgs a) {
  AllowNext();
  WaitForPrevious();
  const int4 merge = a.merges[blockIdx.x];
  if (merge.x < 0) return;
  const int group = threadIdx.x / kGroup, at = threadIdx.x % kGroup;
  for (int row = blockIdx.y * kGroups + group; row < a.piece_rows; row += gridDim.y * kGroups) {
    const float4 sum = WeightedSum<1>(a, merge, row, at, 0);
    StoreMerged(a, LoadItem(a, merge.x), row, at, sum);
  }
}

// The same where merges are few and of many parts: grid (merge, row), all groups share a row.
__global__ void __launch_bounds__(kGroup* kGroups, 2) MergeFewKernel(DecodeArgs a) {
  __shared__ float4 sums[kGroups][kGroup];
  AllowNext();
  WaitForPrevious();
  const int4 merge = a.merges[blockIdx.x];
  if (merge.x < 0) return;
  const int group = threadIdx.x / kGroup, at = threadIdx.x % kGroup, row = blockIdx.y;
  float4 sum = WeightedSum<kGroups>(a, merge, row, at, group);
  sums[group][at] = sum;
  __syncthreads();
  if (group > 0) return;
  for (int g = 1; g < kGroups; ++g) {
    const float4 x = sums[g][at];
    sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
  }
  StoreMerged(a, LoadItem(a, merge.x), row, at, sum);
}

}  // namespace

int64_t MostTiles(const DecodeArgs& args) {
  const AttentionRows& rows = args.p.rows;
  return rows.num_rows * ((rows.max_context - 1) / kBlockSize + 1);
}

void SetPieces(DecodeArgs& args, int piece_rows) {
  args.scale_log2 = args.p.scale * kLog2E;
  args.piece_rows = piece_rows;
  args.pieces = (args.p.rows.max_row_tokens * args.p.heads + piece_rows - 1) / piece_rows;
}

int PrepareDecode(DecodeArgs& args, int piece_rows, int tiles_at_once, int whole_tiles,
                  CudaContext& context) {
  constexpr int kMergeTiles = 3;  // that take as long as the second kernel
  const AttentionRows& rows = args.p.rows;
  SetPieces(args, piece_rows);
  args.tiles_at_once = tiles_at_once;
  const int sms = std::min(context.sm_count, kMaxRuns);
  const int64_t tiles = MostTiles(args), of_item = tiles / rows.num_rows;
  const int runs = static_cast<int>(std::clamp<int64_t>(sms / args.pieces, 1, tiles));
  const int ctas = runs * args.pieces;
  const int64_t longest = CeilDiv(rows.num_rows, runs) * of_item;
  args.whole = of_item <= whole_tiles && longest <= tiles / runs + kMergeTiles;
  if (runs > 1 && !args.whole) {
    args.by_row = rows.num_rows < runs;
    args.merges = context.scratch.Allocate<int4>(ctas);
    args.part_o = context.scratch.Allocate<float>(int64_t{ctas} * 2 * piece_rows * kDecodeLatent);
    args.part_ml = context.scratch.Allocate<float2>(int64_t{ctas} * 2 * piece_rows);
  }
  return ctas;
}

int64_t FastDecodeScratchBytes(int piece_rows) {
  const int64_t rows = int64_t{kMaxRuns} * 2 * piece_rows;
  return DeviceScratch::Aligned(kMaxRuns * 16) + DeviceScratch::Aligned(rows * kDecodeLatent * 4) +
         DeviceScratch::Aligned(rows * 8);
}

void MergeDecode(const DecodeArgs& args, int ctas, CudaContext& context) {
  if (args.merges == nullptr) return;
  const int merges = args.by_row ? args.p.rows.num_rows * args.pieces : ctas;
  const dim3 block(kGroup * kGroups);
  if (merges * kManyMerges <= ctas) {
    Launch(MergeFewKernel, dim3(merges, args.piece_rows), block, 0, context, args);
  } else {
    // As many as find room at once: where no item was cut, they all end having read one number.
    const int turns = std::clamp(4 * context.sm_count / merges, 1, args.piece_rows / kGroups);
    Launch(MergeKernel, dim3(merges, turns), block, 0, context, args);
  }
  HADAL_CUDA_LAUNCHED();
}

}  // namespace hadal::cuda
