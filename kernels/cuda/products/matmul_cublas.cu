#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/products/cublas_plan.h"
#include "kernels/cuda/products/matmul.h"
#include "kernels/cuda/rows/quantise.cuh"

namespace hadal::cuda {
namespace {

constexpr int64_t kBlock = 128;

bool Aligned(const void* p, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride_bytes % 16 == 0;
}

// Rows of scales, `to_stride` apart instead of `from_stride`.
__global__ void SpreadScalesKernel(const float* from, int64_t from_stride, float* to,
                                   int64_t to_stride, int64_t rows) {
  WaitForPrevious();  // `to` is scratch that an earlier op may still read
  AllowNext();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= rows * to_stride) return;
  const int64_t col = i % to_stride;
  to[i] = col < from_stride ? from[i / to_stride * from_stride + col] : 0.0f;
}

// The weight's scales with rows of a multiple of four: in place, or in scratch.
const float* CublasScales(const CudaPackedWeight& w, CudaContext& context) {
  const int64_t stride = (w.k_blocks + 3) / 4 * 4;
  if (stride == w.k_blocks) return w.scale;
  float* to = context.scratch.Allocate<float>(w.scale_n * stride);
  const auto grid = dim3(static_cast<unsigned>((w.scale_n * stride + 255) / 256));
  Launch(SpreadScalesKernel, grid, dim3(256), 0, context, w.scale, w.k_blocks, to, stride,
         w.scale_n);
  HADAL_CUDA_LAUNCHED();
  return to;
}

}  // namespace

bool MatMulCublas(const Product& p, CudaContext& context) {
  const CudaPackedWeight& w = *p.w;
  if (context.act != DType::kBF16 || w.dtype != DType::kBF16) return false;
  if (!Aligned(p.x, p.x_stride * 2) || w.k % 8 != 0 || p.x_matrix_stride % 8 != 0) return false;
  if (p.m == 0) return true;
  return RunCublas({.x = p.x,
                    .x_stride = p.x_stride,
                    .w = w.data,
                    .w_stride = w.stride,
                    .y = p.y,
                    .y_stride = p.y_stride,
                    .m = p.m,
                    .n = w.n,
                    .k = w.k,
                    .float_out = p.float_out,
                    .batch = p.matrices,
                    .x_step = p.x_matrix_stride,
                    .w_step = w.n * w.stride,
                    .y_step = p.y_matrix_stride},
                   context);
}

int CublasF8Rows(const Product& p, const CudaContext& context) {
  const CudaPackedWeight& w = *p.w;
  if (context.act != DType::kBF16 || w.dtype != DType::kF8E4M3 || p.matrices != 1) return 0;
  if (w.scale_rows != kBlock || w.k_lead != 0 || w.n % 4 != 0 || w.k % 16 != 0) return 0;
  return Aligned(p.x, p.x_stride * 2) ? p.m / 4 * 4 : 0;
}

QuantiseParams CublasF8Operand(const Product& p, int rows, CudaContext& context) {
  const CudaPackedWeight& w = *p.w;
  return {.x = static_cast<const __nv_bfloat16*>(p.x),
          .x_stride = p.x_stride,
          .rows = rows,
          .columns = w.k,
          .codes = context.scratch.Allocate<uint8_t>(rows * w.k),
          .code_stride = w.k,
          .scales = context.scratch.Allocate<float>(rows * w.k_blocks),
          .scale_block_stride = rows};
}

bool RunCublasF8(const Product& p, const QuantiseParams& x, CudaContext& context) {
  const CudaPackedWeight& w = *p.w;
  const bool done = RunCublas({.x = x.codes,
                               .x_stride = x.code_stride,
                               .w = w.data,
                               .w_stride = w.stride,
                               .y = p.y,
                               .y_stride = p.y_stride,
                               .m = x.rows,
                               .n = w.n,
                               .k = w.k,
                               .f8 = true,
                               .float_out = p.float_out,
                               .x_scale = x.scales,
                               .w_scale = CublasScales(w, context)},
                              context);
  if (!done || x.rows == p.m) return done;
  Product rest = p;
  rest.m = p.m - x.rows;
  rest.x = static_cast<const char*>(p.x) + x.rows * p.x_stride * 2;
  rest.y = static_cast<char*>(p.y) + x.rows * p.y_stride * (p.float_out ? 4 : 2);
  return MatMulSkinny(rest, context) || MatMulGeneral(rest, context);
}

bool MatMulCublasF8(const Product& p, CudaContext& context) {
  const int m = CublasF8Rows(p, context);
  if (m == 0) return false;
  DeviceScratch::Scope scope(context.scratch);
  const QuantiseParams x = CublasF8Operand(p, m, context);
  Quantise(x, context);
  return RunCublasF8(p, x, context);
}

}  // namespace hadal::cuda
