#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/device/cuda_context.h"
#include "kernels/cuda/rows/quantise.cuh"
#include "kernels/cuda/weights/packed_weight.h"

namespace hadal::cuda {

// y[t, i] = x[t, i] w[i]^T for the `matrices` matrices i of w: what MatMul and HeadMatMul come to.
struct Product {
  const void* x = nullptr;  // [m, matrices, k] act
  int64_t x_stride = 0;     // between tokens
  int64_t x_matrix_stride = 0;
  const CudaPackedWeight* w = nullptr;
  void* y = nullptr;  // [m, matrices, n]
  int64_t y_stride = 0;
  int64_t y_matrix_stride = 0;
  bool float_out = false;  // y is float, not act
  int m = 0;
  int matrices = 1;
  // y is [m, n / 2]: silu of the first half of the outputs times the second. Only of
  // MatMulSkinny() and MatMulFew().
  bool silu_mul = false;
};

Product ProductOf(const MatMulParams& p);
Product ProductOf(const HeadMatMulParams& p);

// FP8 weights that take longer to widen than what surrounds a product.
inline bool IsLargeF8(const CudaPackedWeight& w) {
  return w.dtype == DType::kF8E4M3 && w.n * w.k >= int64_t{16} << 20;
}

// The ways to compute a product. A function returns false, and has done nothing, where its way does
// not exist for these operands. Weights are read before the kernel waits for the one before it:
// where a kernel has written them, another one must have waited for it and only then have let its
// successor start.
bool MatMulGeneral(const Product& p, CudaContext& context);  // always exists
bool MatMulSkinny(const Product& p, CudaContext& context);   // bf16 act; meant for few rows
bool MatMulFew(const Product& p, CudaContext& context);      // the same, on Hopper
bool MatMulHeld(const Product& p,
                CudaContext& context);  // at most 8 rows, all weights in registers
bool MatMulCublas(const Product& p, CudaContext& context);    // bf16 act and weights
bool MatMulCublasF8(const Product& p, CudaContext& context);  // rounds x to FP8, 1x128 scales

// The rows that cuBLASLt takes of a product in FP8, as it takes them by four; a rest goes the way
// of few rows. 0: it takes none.
int CublasF8Rows(const Product& p, const CudaContext& context);
// Where these rows are to lie, in scratch; and their product.
QuantiseParams CublasF8Operand(const Product& p, int rows, CudaContext& context);
// The rest of the rows goes its way too. False: nothing was done.
bool RunCublasF8(const Product& p, const QuantiseParams& x, CudaContext& context);
// CublasF8Rows() where RunProduct() takes that way, else 0.
int RowsInF8(const Product& p, const CudaContext& context);

// How MatMulFew() divides a product: outputs of a block (64 or 128), and blocks that share the
// inputs (a power of two, at most a block's outputs / 16).
struct FewPlan {
  int rows = 0;
  int splits = 0;
};
FewPlan ChooseFewPlan(const Product& p, const CudaContext& context);
bool MatMulFew(const Product& p, const FewPlan& plan, CudaContext& context);

// How MatMulHeld() divides a product: a warp takes units * 64 inputs, of FP8 widened before or as
// codes; a block has 8 or 16 warps. Chosen is the first with which all blocks run at once; of 0
// units: none.
struct HeldPlan {
  int units = 0;
  int warps = 8;
  bool codes = false;
};
inline constexpr HeldPlan kHeldPlans[] = {{1}, {2}, {4}, {4, 16}, {4, 8, true}, {8, 16, true}};
HeldPlan ChooseHeldPlan(const Product& p, const CudaContext& context);
bool MatMulHeld(const Product& p, const HeldPlan& plan, CudaContext& context);

// Chooses among them. What MatMul() and HeadMatMul() do.
void RunProduct(const Product& p, CudaContext& context);

// out[t] = silu(x[t, 0 .. width)) * x[t, width .. 2 width), act; contiguous.
void SiluMul(const void* x, void* out, int tokens, int64_t width, CudaContext& context);

}  // namespace hadal::cuda
