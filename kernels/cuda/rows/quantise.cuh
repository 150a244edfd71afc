#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/device/cuda_context.h"
#include "kernels/op_params.h"

namespace hadal::cuda {

// Rounds rows of activations to e4m3 with one scale per 128 columns: scale = max(|x|, 1e-4) / 448
// over the block, code = x / scale. REQUIRES: columns and strides multiples of 8 (code_stride of
// 16), pointers aligned to 16 bytes.
struct QuantiseParams {
  const __nv_bfloat16* x = nullptr;  // [.., columns]; with silu_mul [.., 2 * columns]
  int64_t x_stride = 0;
  const int32_t* row_of =
      nullptr;  // [rows] row of x, -1: a row of zeros; null: row i is row i of x
  // Device; rows from here on are left alone. Null: all count.
  const int32_t* row_count = nullptr;
  int rows = 0;
  int64_t columns = 0;
  bool silu_mul = false;     // quantise silu(first half) * second half
  uint8_t* codes = nullptr;  // [rows, columns]
  int64_t code_stride = 0;
  // Scale of row r, block b at scales[r * scale_row_stride + b * scale_block_stride].
  float* scales = nullptr;
  int64_t scale_row_stride = 1;  // cuBLASLt wants the rows of a block side by side
  int64_t scale_block_stride = 0;
};

void Quantise(const QuantiseParams& p, CudaContext& context);
// The norm's result rounded like that instead of written to p.out; of q, only where codes and
// scales go. False where there is no such kernel for these shapes, and nothing was done.
bool NormQuantise(const RmsNormParams& p, const QuantiseParams& q, CudaContext& context);

// Two operands, few rows by few multiprocessors, so that the kernel behind fetches its weights
// meanwhile; it may start before the wait of the one before this. REQUIRES: no silu_mul; row_count
// was there before the kernel before this one began its work.
void QuantiseBoth(const QuantiseParams& first, const QuantiseParams& second, CudaContext& context);

}  // namespace hadal::cuda
