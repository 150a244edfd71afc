#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/cuda_context.h"

namespace hadal::cuda {

// Rows split in two (split_f8.cuh), zeros around the columns that there are.
struct SplitView {
  const uint8_t* codes = nullptr;  // [rows, 2, blocks, 128]: high parts, then low ones
  const float* scales = nullptr;   // [rows, blocks]
  int blocks = 0;
};

// x [rows, columns] bf16, contiguous; column 0 is column `lead` of its block. count: device, the rows
// that there are; null: all. From context.scratch. REQUIRES: columns and lead multiples of 8.
SplitView SplitRows(const __nv_bfloat16* x, int rows, const int32_t* count, int columns, int lead,
                    CudaContext& context);
int64_t SplitRowsBytes(int64_t rows, int64_t columns);  // whatever the lead

}  // namespace hadal::cuda
