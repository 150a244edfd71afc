#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/device/cuda_context.h"

namespace hadal::cuda {

// out[t] = shared[t] + sum over j of weights[t, j] * rows[row_of[t, j]], j ascending, FP32 sums.
struct CombineArgs {
  const void* shared = nullptr;     // [tokens, dim] of row_dtype, or null
  const void* rows = nullptr;       // [rows, dim] of row_dtype
  const int32_t* row_of = nullptr;  // [tokens, top_k], -1: skipped
  const float* weights = nullptr;   // [tokens, top_k]; null: 1
  // row_of and weights were there before the kernel before this one began its work.
  bool choices_known = false;
  void* out = nullptr;              // [tokens, dim] act
  int tokens = 0;
  int top_k = 0;
  int64_t dim = 0;
};

void CombineRows(const CombineArgs& args, DType row_dtype, CudaContext& context);

}  // namespace hadal::cuda
