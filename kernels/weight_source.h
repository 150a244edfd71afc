#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "common/dtype.h"
#include "common/random_weights.h"

namespace hadal {

// A piece of a checkpoint matrix in host memory, or of several stacked along n.
struct WeightSource {
  const void* data = nullptr;  // [n, k] of dtype; [k, n] when transposed
  DType dtype = DType::kBF16;
  int64_t n = 0;               // outputs
  int64_t k = 0;               // inputs
  int64_t row_stride = 0;      // elements between rows of `data`
  bool transposed = false;     // `data` is [k, n]: element (n, k) lies at data[k * row_stride + n]
  // kF8E4M3: true value = element * scale. The whole matrix's block scales, row-major; the element
  // at row r, column c of `data` uses
  //   scale[((row_offset + r) / scale_block) * scale_stride + (col_offset + c) / scale_block].
  const float* scale = nullptr;
  int64_t scale_stride = 0;
  int64_t scale_block = 128;
  int64_t row_offset = 0;      // where the slice starts in the whole matrix
  int64_t col_offset = 0;
  // Set: element i of `data` is element random->first + i of that sequence, which a backend may make
  // itself instead of reading `data`.
  std::optional<RandomElements> random;
};

// kHeads: matrices of an attention layer's heads, small and multiplied again and again. A backend
// may keep FP8 ones in the activations' type, which spares each product their widening.
enum class WeightUse { kStream, kHeads };

// The sources of one matrix, stacked along n (same k, dtype, col_offset). Never empty.
using StackedSource = std::vector<WeightSource>;

// `count` matrices [n, k] in the backend's own layout: the heads of an attention layer, the experts
// of a rank, or one alone. FP8 stays at one byte an element, but for what WeightUse allows.
struct PackedWeight {
  virtual ~PackedWeight() = default;
  int count = 1;
  int64_t n = 0;
  int64_t k = 0;
  DType dtype = DType::kBF16;
  int64_t bytes = 0;  // what all of them occupy, scales and padding included
};

}  // namespace hadal
