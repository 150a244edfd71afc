#include <algorithm>

#include "common/rounding.h"
#include "kernels/cuda/products/matmul.h"
#include "kernels/cuda/products/ops.h"
#include "kernels/cuda/rows/ops.h"

namespace hadal::cuda {
namespace {

// Up to here reading the weights takes longer than multiplying by them.
constexpr int kFewRows = 64;
// Of bf16 weights cuBLASLt is as good from half as many on, and better where they are small: at 64
// rows it takes 7.7 us instead of 10.2 of [3648, 2048], 3.1 instead of 6.2 of 16 [512, 128] (H200).
constexpr int kFewRowsOfBf16 = 32;
// Widening large FP8 weights takes longer than that from half as many on: of [24576, 1536] and
// [7168, 16384] 29 and 58 us at 64 rows, where cuBLASLt takes 18 and 43 (H200).
constexpr int kFewRowsOfLargeF8 = 32;

const CudaPackedWeight& Packed(const PackedWeight* w) {
  return static_cast<const CudaPackedWeight&>(*w);
}

}  // namespace

Product ProductOf(const MatMulParams& p) {
  return {.x = p.x,
          .x_stride = p.x_stride,
          .w = &Packed(p.w),
          .y = p.y,
          .y_stride = p.y_stride,
          .float_out = p.float_out,
          .m = p.m};
}

Product ProductOf(const HeadMatMulParams& p) {
  return {.x = p.x,
          .x_stride = p.x_stride,
          .x_matrix_stride = p.x_head_stride,
          .w = &Packed(p.w),
          .y = p.y,
          .y_stride = p.y_stride,
          .y_matrix_stride = p.y_head_stride,
          .m = p.m,
          .matrices = p.heads};
}

static bool HasManyRows(const Product& p) {
  const int few = p.w->dtype == DType::kBF16 ? kFewRowsOfBf16
                  : IsLargeF8(*p.w)          ? kFewRowsOfLargeF8
                                             : kFewRows;
  return p.m > few;
}

int RowsInF8(const Product& p, const CudaContext& context) {
  return HasManyRows(p) ? CublasF8Rows(p, context) : 0;
}

void RunProduct(const Product& p, CudaContext& context) {
  if (p.m == 0) return;
  if (HasManyRows(p) && (MatMulCublas(p, context) || MatMulCublasF8(p, context))) return;
  if (MatMulHeld(p, context) || MatMulFew(p, context) || MatMulSkinny(p, context)) return;
  MatMulGeneral(p, context);
}

void MatMul(const MatMulParams& p, CudaContext& context) { RunProduct(ProductOf(p), context); }

// A norm that is multiplied in FP8 is rounded as it is made. Where the sum replaces the residual it
// could not be made a second time, for a product that cuBLASLt then refuses.
static bool NormMatMulF8(const RmsNormParams& norm, const Product& p, CudaContext& context) {
  const bool in_place = norm.from == nullptr && norm.delta != nullptr;
  if (in_place || p.m == 0 || RowsInF8(p, context) != p.m || norm.dim != p.w->k) return false;
  DeviceScratch::Scope scope(context.scratch);
  const QuantiseParams x = CublasF8Operand(p, p.m, context);
  return NormQuantise(norm, x, context) && RunCublasF8(p, x, context);
}

void NormMatMul(const RmsNormParams& norm, const MatMulParams& p, CudaContext& context) {
  if (NormMatMulF8(norm, ProductOf(p), context)) return;
  RmsNorm(norm, context);
  MatMul(p, context);
}

void HeadMatMul(const HeadMatMulParams& p, CudaContext& context) {
  RunProduct(ProductOf(p), context);
}

void Mlp(const MlpParams& p, CudaContext& context) {
  if (p.tokens == 0) return;
  DeviceScratch::Scope scope(context.scratch);
  const int64_t size = DTypeSize(context.act), rows = p.tokens;
  const CudaPackedWeight &w13 = Packed(p.w13), &w2 = Packed(p.w2);
  char* hidden = context.scratch.Allocate<char>(rows * p.width * size);
  Product first{.x = p.x,
                .x_stride = w13.k,
                .w = &w13,
                .y = hidden,
                .y_stride = p.width,
                .m = p.tokens,
                .silu_mul = true};
  if (p.tokens > kFewRows || !(MatMulFew(first, context) || MatMulSkinny(first, context))) {
    char* both = context.scratch.Allocate<char>(rows * w13.n * size);
    first.y = both;
    first.y_stride = w13.n;
    first.silu_mul = false;
    RunProduct(first, context);
    SiluMul(both, hidden, p.tokens, p.width, context);
  }
  RunProduct(
      {.x = hidden, .x_stride = p.width, .w = &w2, .y = p.out, .y_stride = w2.n, .m = p.tokens},
      context);
}

int64_t MatMulScratchBytes(const OpLimits& limits, DType act) {
  const int64_t size = DTypeSize(act), rows = limits.tokens;
  const int64_t mlp = DeviceScratch::Aligned(rows * limits.mlp_width * size) +
                      DeviceScratch::Aligned(rows * 2 * limits.mlp_width * size);
  if (act != DType::kBF16) return mlp;
  // Quantised activations and spread scales of one product.
  const int64_t k =
      std::max({limits.dim, limits.mlp_width, limits.q_rank, int64_t{limits.heads} * limits.v_dim});
  const int64_t n = std::max({limits.dim, 2 * limits.mlp_width, limits.vocab,
                              limits.q_rank + limits.latent_rank + limits.rope_dim,
                              int64_t{limits.heads} * (limits.nope_dim + limits.rope_dim) +
                                  limits.latent_rank + limits.rope_dim});
  const int64_t blocks = CeilDiv(k, 128), scale_size = sizeof(float);
  return mlp + DeviceScratch::Aligned(rows * k) +
         DeviceScratch::Aligned(rows * blocks * scale_size) +
         DeviceScratch::Aligned(CeilDiv(n, 128) * (blocks + 3) * scale_size);
}

}  // namespace hadal::cuda
