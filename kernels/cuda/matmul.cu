#include "kernels/cuda/matmul.h"

#include <algorithm>

#include "kernels/cuda/ops.h"

namespace hadal::cuda {
namespace {

const CudaPackedWeight& Packed(const PackedWeight* w) {
  return static_cast<const CudaPackedWeight&>(*w);
}

}  // namespace

void RunProduct(const Product& p, CudaContext& context) {
  if (p.m == 0) return;
  MatMulGeneral(p, context);
}

void MatMul(const MatMulParams& p, CudaContext& context) {
  RunProduct({.x = p.x, .x_stride = p.x_stride, .w = &Packed(p.w), .y = p.y, .y_stride = p.y_stride,
              .float_out = p.float_out, .m = p.m},
             context);
}

void HeadMatMul(const HeadMatMulParams& p, CudaContext& context) {
  RunProduct({.x = p.x, .x_stride = p.x_stride, .x_matrix_stride = p.x_head_stride,
              .w = &Packed(p.w), .y = p.y, .y_stride = p.y_stride,
              .y_matrix_stride = p.y_head_stride, .m = p.m, .matrices = p.heads},
             context);
}

void Mlp(const MlpParams& p, CudaContext& context) {
  if (p.tokens == 0) return;
  DeviceScratch::Scope scope(context.scratch);
  const int64_t size = DTypeSize(context.act), rows = p.tokens;
  const CudaPackedWeight &w13 = Packed(p.w13), &w2 = Packed(p.w2);
  char* hidden = context.scratch.Allocate<char>(rows * p.width * size);
  char* both = context.scratch.Allocate<char>(rows * 2 * p.width * size);
  RunProduct({.x = p.x, .x_stride = w13.k, .w = &w13, .y = both, .y_stride = w13.n, .m = p.tokens},
             context);
  SiluMul(both, hidden, p.tokens, p.width, context);
  RunProduct({.x = hidden, .x_stride = p.width, .w = &w2, .y = p.out, .y_stride = w2.n,
              .m = p.tokens},
             context);
}

int64_t MatMulScratchBytes(const OpLimits& limits, DType act) {
  const int64_t size = DTypeSize(act), rows = limits.tokens;
  return DeviceScratch::Aligned(rows * limits.mlp_width * size) +
         DeviceScratch::Aligned(rows * 2 * limits.mlp_width * size);
}

}  // namespace hadal::cuda
