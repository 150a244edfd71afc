#pragma once

#include <compare>
#include <cstdint>

#include "kernels/cuda/device/cuda_context.h"

namespace hadal::cuda {

// y[i] = x[i] w[i]^T through cuBLASLt: rows of all three k- or n-contiguous.
struct CublasProduct {
  const void* x = nullptr;  // [m, k], bf16 or e4m3
  int64_t x_stride = 0;
  const void* w = nullptr;  // [n, k], of x's type
  int64_t w_stride = 0;
  void* y = nullptr;  // [m, n] bf16 or float
  int64_t y_stride = 0;
  int64_t m = 0, n = 0, k = 0;
  bool f8 = false;
  bool float_out = false;
  // e4m3: scale of row i of x, block b at [b * m + i]; of block (r, b) of w at [r * stride + b],
  // the stride ceil(k / 128) rounded up to 4.
  const float* x_scale = nullptr;
  const float* w_scale = nullptr;
  int batch = 1;  // and the elements between matrices
  int64_t x_step = 0, w_step = 0, y_step = 0;
};

// False, with nothing done, where cuBLASLt has no way to compute it. The search for the best one is
// made once for each shape (m in steps) and remembered for the life of the process.
bool RunCublas(const CublasProduct& p, CudaContext& context);

}  // namespace hadal::cuda
