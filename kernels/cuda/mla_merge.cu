#include <algorithm>

#include "common/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mla_schedule.cuh"

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

// Weights 2^(m_j - m) / l of the parts of one (query, head) pair; a whole warp. Its lanes take
// parts in turn.
__device__ void PartWeights(const DecodeArgs& a, int4 merge, int row, float* weights) {
  const int lane = threadIdx.x % 32, count = merge.z - merge.y + 1;
  const auto ml = [&](int j) { return a.part_ml[PartRow(a, merge, j, row)]; };
  float m = -INFINITY, l = 0;
  for (int j = lane; j < count; j += 32) m = fmaxf(m, ml(j).x);
  m = WarpMax(m);
  for (int j = lane; j < count; j += 32) {
    const float2 part = ml(j);
    weights[j] = ExpDiff(part.x, m);
    l += part.y * weights[j];
  }
  const float inverse = 1.0f / WarpSum(l);
  for (int j = lane; j < count; j += 32) weights[j] *= inverse;
}

// Grid: (merge, row or group of rows). A group of threads takes a row; where `shared_rows`, all
// groups take one row and every kGroups-th part of it.
template <bool kSharedRows>
__global__ void __launch_bounds__(kGroup* kGroups) MergeKernel(DecodeArgs a) {
  __shared__ float weights[kGroups][kMaxRuns];
  __shared__ float4 sums[kGroups][kGroup];
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  const int4 merge = a.merges[blockIdx.x];
  if (merge.x < 0) return;
  const DecodeItem item = LoadItem(a, merge.x);
  const int group = threadIdx.x / kGroup, at = threadIdx.x % kGroup;
  const int row = kSharedRows ? blockIdx.y : blockIdx.y * kGroups + group;
  if (at < 32) PartWeights(a, merge, row, weights[group]);
  __syncthreads();
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
  for (int j = kSharedRows ? group : 0; j <= merge.z - merge.y; j += kSharedRows ? kGroups : 1) {
    const int64_t part = PartRow(a, merge, j, row);
    const float4 o = reinterpret_cast<const float4*>(a.part_o + part * kDecodeLatent)[at];
    const float w = weights[group][j];
    sum = make_float4(sum.x + w * o.x, sum.y + w * o.y, sum.z + w * o.z, sum.w + w * o.w);
  }
  if (kSharedRows) {
    sums[group][at] = sum;
    __syncthreads();
    if (group > 0) return;
    for (int g = 1; g < kGroups; ++g) {
      const float4 x = sums[g][at];
      sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
    }
  }
  const int pair = item.first + row;
  if (pair >= item.pairs) return;
  const int64_t out = static_cast<int64_t>(item.row.first_token) * a.p.heads + pair;
  __nv_bfloat162 halves[2] = {__floats2bfloat162_rn(sum.x, sum.y),
                              __floats2bfloat162_rn(sum.z, sum.w)};
  reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(a.p.out) + out * kDecodeLatent)[at] =
      *reinterpret_cast<const uint2*>(halves);
}

}  // namespace

int PrepareDecode(DecodeArgs& args, int piece_rows, CudaContext& context) {
  const AttentionRows& rows = args.p.rows;
  args.scale_log2 = args.p.scale * kLog2E;
  args.piece_rows = piece_rows;
  args.pieces = (rows.max_row_tokens * args.p.heads + piece_rows - 1) / piece_rows;
  const int64_t tiles = rows.num_rows * ((rows.max_context - 1) / kBlockSize + 1);
  const int sms = std::min(context.sm_count, kMaxRuns);
  const int runs = static_cast<int>(std::clamp<int64_t>(sms / args.pieces, 1, tiles));
  const int ctas = runs * args.pieces;
  if (runs > 1) {
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
    Launch(MergeKernel<true>, dim3(merges, args.piece_rows), block, 0, context, args);
  } else {
    Launch(MergeKernel<false>, dim3(merges, args.piece_rows / kGroups), block, 0, context, args);
  }
  HADAL_CUDA_LAUNCHED();
}

}  // namespace hadal::cuda
