#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/experts/moe_rows.h"

namespace hadal::cuda {

// One of the two products of an item list: the shared MLP (`tiles` null) or the experts.
struct StreamPart {
  const bf16* x = nullptr;          // rows of x_stride
  const int32_t* source = nullptr;  // row r reads x row source[r]; null: x row r
  int x_stride = 0;
  int k = 0;  // of x; beyond it x is not read
  const RowTile* tiles = nullptr;
  const int32_t* num_tiles = nullptr;
  int rows = 0;  // without tiles
  int n = 0;     // outputs: pairs of gate and up rows when gated; 0: no such part
  WeightView w;
  void* out = nullptr;  // [rows, out_stride]: bf16 when gated, float otherwise
  int out_stride = 0;
};

struct StreamArgs {
  StreamPart shared;
  StreamPart experts;
};

// tokens: of a tile, 32 or 64. max_items: bound of the items, for the grid.
void LaunchStreamBf16(const StreamArgs& args, bool gated, int tokens, int max_items,
                      CudaContext& context);
void LaunchStreamFp8(const StreamArgs& args, bool gated, int tokens, int max_items,
                     CudaContext& context);

// The same where StreamF8Fits(): on Hopper's FP8 tensor cores, without rounding activations to FP8.
inline constexpr int kStreamF8Tokens = 32;  // of a tile
struct StreamRows {
  int count = 0;                   // of the experts' x
  const int32_t* there = nullptr;  // device, as SplitRows()
  int matrices = 0;                // experts that live here
};
bool StreamF8Fits(const MoeParams& p, const CudaContext& context);
void LaunchStreamF8(const StreamArgs& args, const StreamRows& rows, bool gated, int max_items,
                    CudaContext& context);
int64_t StreamF8Bytes(int64_t tokens, const OpLimits& limits);  // of scratch

// Moe() of few rows per expert: weights are streamed once for every 32 or 64 rows of an expert.
bool MoeStreamFits(const MoeParams& p, const CudaContext& context);
void MoeStream(const MoeParams& p, CudaContext& context);

}  // namespace hadal::cuda
