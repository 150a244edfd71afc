#pragma once

#include <bit>

#include "common/rounding.h"
#include "kernels/cuda/device/cuda_check.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/products/matmul.h"
#include "kernels/cuda/products/matmul_held.cuh"

// How the host starts the kernels of matmul_held.cuh.
namespace hadal::cuda {

inline bool HeldFits(const Product& p, const CudaContext& context) {
  const CudaPackedWeight& w = *p.w;
  const auto aligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; };
  return context.act == DType::kBF16 && context.arch >= 80 && w.dtype != DType::kF32 &&
         !p.silu_mul && p.m <= kHeldTokens && aligned(p.x) && aligned(w.data) &&
         p.x_stride % 8 == 0 && p.x_matrix_stride % 8 == 0 && w.k % 8 == 0 && w.k_lead % 16 == 0;
}

// Warps that divide the inputs; more than a block has: too many.
inline int HeldSplits(const CudaPackedWeight& w, const HeldPlan& plan) {
  const auto parts =
      static_cast<uint64_t>(CeilDiv(w.k_lead + w.k, int64_t{kHeldUnit} * plan.units));
  return static_cast<int>(std::bit_ceil(parts));
}
// Blocks of a matrix.
inline int HeldTiles(const CudaPackedWeight& w, const HeldPlan& plan) {
  return static_cast<int>(CeilDiv(w.n, 16 * plan.warps / HeldSplits(w, plan)));
}

inline HeldArgs HeldArgsOf(const Product& p, const HeldPlan& plan, const CudaContext& context) {
  const CudaPackedWeight& w = *p.w;
  return {.w = w.data,
          .scale = w.scale,
          .stride = w.stride,
          .scale_n = w.scale_n,
          .k_blocks = w.k_blocks,
          .n = static_cast<int>(w.n),
          .k = static_cast<int>(w.k),
          .k_lead = w.k_lead,
          .scale_rows = w.scale_rows,
          .x = static_cast<const __nv_bfloat16*>(p.x),
          .x_stride = p.x_stride,
          .x_matrix_stride = p.x_matrix_stride,
          .y = p.y,
          .y_stride = p.y_stride,
          .y_matrix_stride = p.y_matrix_stride,
          .float_out = p.float_out,
          .m = p.m,
          .log_splits = std::countr_zero(static_cast<unsigned>(HeldSplits(w, plan))),
          .tiles = HeldTiles(w, plan),
          .ahead = plan.codes && p.matrices == 1 ? context.sm_count : 0};
}

// `kernel` by `blocks` blocks with what the tile of each warp needs.
template <typename Tile, typename... K, typename... A>
void LaunchHeld(void (*kernel)(K...), int blocks, int m, CudaContext& context, A... args) {
  const int bytes = Tile::kWarps * Tile::WarpBytes(m);
  static const cudaError_t prepared =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           Tile::kWarps * Tile::WarpBytes(kHeldTokens));
  HADAL_CUDA(prepared);
  Launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads),
         static_cast<size_t>(bytes), context, args...);
  HADAL_CUDA_LAUNCHED();
}

}  // namespace hadal::cuda
