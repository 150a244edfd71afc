#pragma once

#include <algorithm>

#include "common/rounding.h"
#include "kernels/cuda/device/cuda_check.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/tensor_map.h"
#include "kernels/cuda/products/matmul_few.cuh"
#include "kernels/cuda/products/matmul_few.h"

// How the host starts the kernels of matmul_few.cuh.
namespace hadal::cuda {

inline CUtensorMap WeightMap(const CudaPackedWeight& w, int matrices, bool silu_mul, int groups) {
  const int64_t size = DTypeSize(w.dtype), row = w.stride * size, rows = w.n * matrices;
  const int64_t half = silu_mul ? w.n / 2 * row : 8 * row, group = silu_mul ? 8 * row : 16 * row;
  return TensorMapOf({.base = w.data,
                      .rank = 4,
                      .element_bytes = static_cast<int>(size),
                      .dims = {w.k, 8, 2, rows / 16},
                      .strides = {row, half, group},
                      .box = {static_cast<int>(128 / size), 8, 2, groups}});
}

inline CUtensorMap TokenMap(const Product& p, int box_tokens) {
  const int64_t between = p.matrices > 1 ? p.x_matrix_stride : p.x_stride;
  return TensorMapOf({.base = p.x,
                      .rank = 3,
                      .dims = {p.w->k, p.matrices, p.m},
                      .strides = {between * 2, p.x_stride * 2},
                      .box = {64, 1, box_tokens}});
}

template <typename Tile>
void LaunchTile(const Product& p, const FewPlan& plan, CudaContext& context) {
  static const cudaError_t prepared = [] {
    // The carve-out of every kernel in a row of them should be the same: an SM that has to change
    // it cannot start the next kernel beside the last one.
    const cudaError_t status =
        cudaFuncSetAttribute(FewKernel<Tile>, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared);
    if (status != cudaSuccess) return status;
    return cudaFuncSetAttribute(FewKernel<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                Tile::kMaxShared);
  }();
  HADAL_CUDA(prepared);
  const CudaPackedWeight& w = *p.w;
  FewArgs a{};
  a.w = WeightMap(w, p.matrices, p.silu_mul, Tile::kSlabs);
  a.x = TokenMap(p, Tile::kTokens);
  a.scale = w.scale;
  a.scale_n = w.scale_n;
  a.k_blocks = w.k_blocks;
  a.scale_rows = w.scale_rows;
  a.k_lead = w.k_lead;
  a.y = p.y;
  a.y_stride = p.y_stride;
  a.y_matrix_stride = p.y_matrix_stride;
  a.n = p.silu_mul ? w.n / 2 : w.n;
  a.silu_mul = p.silu_mul;
  a.float_out = p.float_out;
  a.late = p.matrices == 1;
  a.m = p.m;
  a.token_blocks = static_cast<int>(CeilDiv(p.m, Tile::kTokens));
  a.steps = static_cast<int>(CeilDiv(w.k_lead + w.k, Tile::kStep));
  a.split_steps = static_cast<int>(CeilDiv(a.steps, plan.splits));
  a.stages = std::min(a.split_steps, Tile::kStages);
  // Where a product is small, the rest of its weights comes to L2 while the kernel before it runs.
  const auto tiles = static_cast<unsigned>(CeilDiv(w.n, Tile::kRows));
  const auto batch = static_cast<unsigned>(p.matrices * a.token_blocks);
  constexpr int64_t kFetchBytes = 16 << 20;
  const int64_t blocks = int64_t{tiles} * batch * plan.splits;
  a.ahead = static_cast<int>(
      std::min<int64_t>(a.split_steps - a.stages, kFetchBytes / (blocks * Tile::kWeightBytes)));

  // Less where there are fewer steps than stages, so that neighbouring kernels fit beside it.
  const int shared_bytes = a.stages * Tile::kStageBytes + Tile::kSumBytes + Tile::kBarrierBytes;
  LaunchClusters(FewKernel<Tile>, dim3(static_cast<unsigned>(plan.splits), tiles, batch),
                 plan.splits, dim3(Tile::kThreads), static_cast<size_t>(shared_bytes), context, a);
  HADAL_CUDA_LAUNCHED();
}

// Stages: what fits twice into an SM's shared memory, so that the next kernel's weights can be on
// their way before this one ends.
template <typename W, int kTokens, int kRows>
void LaunchFitting(const Product& p, const FewPlan& plan, CudaContext& context) {
  constexpr bool kWide = sizeof(W) == 1 && kTokens == 64;  // takes an SM's registers for itself
  constexpr int kBytes = kWide ? 226 << 10 : 113 << 10;
  using OneStage = FewTile<W, kTokens, kRows, 1, 1>;
  constexpr int kStages = std::min(8, (kBytes - 256 - OneStage::kSumBytes) / OneStage::kStageBytes);
  LaunchTile<FewTile<W, kTokens, kRows, kStages, kWide ? 1 : 2>>(p, plan, context);
}

template <typename W, int kTokens>
void LaunchRows(const Product& p, const FewPlan& plan, CudaContext& context) {
  if (plan.rows == 64) return LaunchFitting<W, kTokens, 64>(p, plan, context);
  LaunchFitting<W, kTokens, 128>(p, plan, context);
}

}  // namespace hadal::cuda
