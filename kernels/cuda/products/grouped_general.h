#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "kernels/cuda/device/cuda_context.h"
#include "kernels/cuda/weights/weight_view.cuh"

namespace hadal::cuda {

// Rows of one expert that one block works on.
struct RowTile {
  int32_t expert = 0;  // index in w13 and w2
  int32_t first = 0;   // sorted row
  int32_t count = 0;
};

// One matrix product over sorted rows, any shape and dtype, FP32 sums.
struct GroupedArgs {
  const void* x = nullptr;  // rows of k elements of act
  int64_t x_stride = 0;
  const int32_t* source = nullptr;  // row r reads x[source[r]]; null: x[r]
  const RowTile* tiles = nullptr;   // null: one expert, number 0, with `rows` rows
  const int32_t* num_tiles = nullptr;
  int max_tiles = 0;
  int rows = 0;
  WeightView w;
  int64_t n = 0;  // outputs of a row; gated: n gate rows, then n up rows
  int64_t k = 0;
  void* out = nullptr;  // [rows, n]: act when gated, float otherwise
  int64_t out_stride = 0;
};

inline constexpr int kGeneralTileRows = 32;

// out = x w^T, or silu(x gate^T) * (x up^T) when `gated`.
void GroupedGeneral(const GroupedArgs& args, DType weight, bool gated, CudaContext& context);

}  // namespace hadal::cuda
