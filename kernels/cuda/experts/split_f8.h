#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <span>

#include "kernels/cuda/device/cuda_context.h"

namespace hadal::cuda {

// Rows split in two (split_f8.cuh), zeros around the columns that there are.
struct SplitView {
  const uint8_t* codes = nullptr;  // [rows, 2, blocks, 128]: high parts, then low ones
  const float* scales = nullptr;   // [rows, blocks]
  int blocks = 0;
};

struct SplitSource {
  const __nv_bfloat16* x = nullptr;  // [rows, columns]
  int rows = 0;
  const int32_t* count = nullptr;  // device, the rows that there are; null: all
  int columns = 0;
  int lead = 0;  // column 0 is this one of its block
};

// Splits one or two sources, to context.scratch. REQUIRES: columns and leads multiples of 8.
void SplitRows(std::span<const SplitSource> sources, std::span<SplitView> views,
               CudaContext& context);
int64_t SplitRowsBytes(int64_t rows, int64_t columns);  // whatever the lead

}  // namespace hadal::cuda
