#include <algorithm>

#include "kernels/cuda/device/cuda_check.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/products/matmul.h"
#include "kernels/cuda/products/matmul_skinny.cuh"

namespace hadal::cuda {
namespace {

constexpr int kMaxSplits = 8;  // the largest portable cluster

// Into how many ranges to divide the inputs: enough for a block on (nearly) every multiprocessor
// and for enough loads in flight to hide memory's latency, and no more.
template <typename Tile>
int ChooseSplits(int64_t blocks, int steps, int sm_count) {
  constexpr int64_t kFlightBytes = 6 << 20;  // twice bandwidth times latency of today's cards
  int splits = 1;
  while (splits < kMaxSplits && 2 * splits <= steps) {
    const int64_t ahead = std::min(Tile::kStages - 1, steps / splits);
    const bool busy = blocks * splits * 8 >= int64_t{sm_count} * 7;
    if (busy && blocks * splits * ahead * Tile::kWeightBytes >= kFlightBytes) break;
    splits *= 2;
  }
  return splits;
}

template <typename Tile>
void LaunchTile(const Product& p, CudaContext& context) {
  static const cudaError_t prepared = cudaFuncSetAttribute(
      SkinnyKernel<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes);
  HADAL_CUDA(prepared);
  const CudaPackedWeight& w = *p.w;
  const int64_t size = DTypeSize(w.dtype);
  const int block_rows = p.silu_mul ? Tile::kRows / 2 : Tile::kRows;
  SkinnyArgs a{};
  a.x = static_cast<const __nv_bfloat16*>(p.x);
  a.x_stride = p.x_stride;
  a.x_matrix_stride = p.x_matrix_stride;
  a.w = static_cast<const char*>(w.data);
  a.row_bytes = w.stride * size;
  a.matrix_bytes = w.n * a.row_bytes;
  a.scale = w.scale;
  a.scale_rows = w.scale_rows;
  a.scale_n = w.scale_n;
  a.k_blocks = w.k_blocks;
  a.k_lead = w.k_lead;
  a.y = p.y;
  a.y_stride = p.y_stride;
  a.y_matrix_stride = p.y_matrix_stride;
  a.float_out = p.float_out;
  a.m = p.m;
  a.token_blocks = (p.m + Tile::kTokens - 1) / Tile::kTokens;
  a.k = w.k;
  a.n = p.silu_mul ? w.n / 2 : w.n;
  a.silu_mul = p.silu_mul;
  a.steps = static_cast<int>((w.k_lead + w.k + Tile::kStep - 1) / Tile::kStep);
  const auto tiles = static_cast<unsigned>((a.n + block_rows - 1) / block_rows);
  const auto batch = static_cast<unsigned>(p.matrices * a.token_blocks);
  const int splits = context.arch >= 90
                         ? ChooseSplits<Tile>(int64_t{tiles} * batch, a.steps, context.sm_count)
                         : 1;
  a.split_steps = (a.steps + splits - 1) / splits;

  // Less where there are fewer steps than stages, so that neighbouring kernels fit beside it.
  const int shared_bytes =
      std::max(Tile::kPartialBytes, std::min(a.split_steps, Tile::kStages) * Tile::kStageBytes);
  LaunchClusters(SkinnyKernel<Tile>, dim3(static_cast<unsigned>(splits), tiles, batch), splits,
                 dim3(Tile::kThreads), static_cast<size_t>(shared_bytes), context, a);
  HADAL_CUDA_LAUNCHED();
}

// Stages: what fits twice into an SM's shared memory, so that the next kernel's weights can be on
// their way before this one ends; the widest FP8 tiles need the registers of a whole SM anyway.
void LaunchBf16(const Product& p, CudaContext& context) {
  if (p.m <= 8) return LaunchTile<SkinnyTile<__nv_bfloat16, 1, 128, 6, 2>>(p, context);
  if (p.m <= 16) return LaunchTile<SkinnyTile<__nv_bfloat16, 2, 128, 6, 2>>(p, context);
  if (p.m <= 32) return LaunchTile<SkinnyTile<__nv_bfloat16, 4, 128, 5, 2>>(p, context);
  LaunchTile<SkinnyTile<__nv_bfloat16, 8, 128, 4, 2>>(p, context);
}

void LaunchF8(const Product& p, CudaContext& context) {
  if (p.m <= 8) return LaunchTile<SkinnyTile<uint8_t, 1, 128, 6, 2>>(p, context);
  if (p.m <= 16) return LaunchTile<SkinnyTile<uint8_t, 2, 128, 5, 2>>(p, context);
  // The larger tiles need more shared memory than there is before Hopper.
  if (p.m <= 32 || context.arch < 90) {
    return LaunchTile<SkinnyTile<uint8_t, 4, 128, 4, 2>>(p, context);
  }
  // Activations of 64 tokens are as many bytes as the weights of 128 outputs: twice as many outputs
  // per block, where there are enough, halve the traffic from L2.
  const int64_t wide_blocks = p.w->n / 256 * p.matrices * ((p.m + 63) / 64);
  if (wide_blocks * kMaxSplits >= context.sm_count) {
    return LaunchTile<SkinnyTile<uint8_t, 8, 256, 4, 1>>(p, context);
  }
  LaunchTile<SkinnyTile<uint8_t, 8, 128, 6, 1>>(p, context);
}

bool Aligned(const Product& p) {
  return reinterpret_cast<uintptr_t>(p.x) % 16 == 0 && p.x_stride % 8 == 0 &&
         p.x_matrix_stride % 8 == 0 && p.w->k % 8 == 0 && p.w->k_lead % 16 == 0;
}

}  // namespace

bool MatMulSkinny(const Product& p, CudaContext& context) {
  if (context.act != DType::kBF16 || p.w->dtype == DType::kF32 || !Aligned(p)) return false;
  if (p.silu_mul && p.float_out) return false;
  if (p.m == 0) return true;
  if (p.w->dtype == DType::kBF16) {
    LaunchBf16(p, context);
  } else {
    LaunchF8(p, context);
  }
  return true;
}

}  // namespace hadal::cuda
