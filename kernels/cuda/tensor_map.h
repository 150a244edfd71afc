#pragma once

#include <cuda.h>

#include <cstdint>

namespace hadal::cuda {

// Describes rows of bf16 to the copy engine: boxes of 64 columns and `box_rows` rows, 128-byte
// swizzle, zeros outside. REQUIRES: base and row_bytes are multiples of 16.
CUtensorMap TensorMap2d(const void* base, int64_t columns, int64_t rows, int64_t row_bytes,
                        int box_rows);

}  // namespace hadal::cuda
