#pragma once

#include <cuda.h>

#include <cstdint>

namespace hadal::cuda {

// Describes rows of bf16 to the copy engine: boxes of 64 columns and `box_rows` rows, 128-byte
// swizzle, zeros outside. REQUIRES: base and row_bytes are multiples of 16.
CUtensorMap TensorMap2d(const void* base, int64_t columns, int64_t rows, int64_t row_bytes,
                        int box_rows);

// A box of any rank up to five; dimension 0 is contiguous, strides[i] bytes between elements of
// dimension i + 1. As above otherwise, of bf16 or bytes; a box is 128 bytes wide.
struct TensorShape {
  const void* base = nullptr;
  int rank = 0;
  int element_bytes = 2;
  int64_t dims[5] = {};
  int64_t strides[4] = {};
  int box[5] = {};
};
CUtensorMap TensorMapOf(const TensorShape& shape);

}  // namespace hadal::cuda
