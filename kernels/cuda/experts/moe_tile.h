#pragma once

#include <cuda.h>

#include "kernels/backend.h"
#include "kernels/cuda/experts/moe_rows.h"

namespace hadal::cuda {

inline constexpr int kTileRows = 128;      // rows of one tile
inline constexpr int kSmallTileRows = 64;  // where experts have few

// One of the two products of an item list: the shared MLP (`tiles` null) or the experts.
struct TilePart {
  const void* x = nullptr;         // rows of x_stride elements of the weights' type
  const float* x_scale = nullptr;  // FP8: [x rows, x_blocks], one per row and 128 of k
  int x_blocks = 0;
  const int32_t* source = nullptr;  // row r reads x row source[r]; null: x row r
  int x_stride = 0;
  int k = 0;  // of x; beyond it x is not read
  const RowTile* tiles = nullptr;
  const int32_t* num_tiles = nullptr;
  int rows = 0;  // without tiles
  int n = 0;     // outputs: pairs of gate and up rows when gated; 0: no such part
  WeightView w;
  int matrices = 1;
  bf16* out = nullptr;  // [rows, out_stride]
  int out_stride = 0;   // when gated, columns from n up to it become 0
  // Where TilesRound(), instead of `out`: its e4m3 codes [rows, n], scales [rows, n / 128].
  uint8_t* codes = nullptr;
  float* code_scale = nullptr;
};

// Division by what the host knows: exact while the quotient's numerator times the divisor is below
// 2^32.
struct Divisor {
  uint32_t factor = 0;

  Divisor() = default;
  explicit Divisor(int by)
      : factor(by == 1 ? 0 : static_cast<uint32_t>(((uint64_t{1} << 32) + by - 1) / by)) {}
#ifdef __CUDACC__
  __device__ __forceinline__ int Divide(int x) const {
    return factor == 0 ? x : static_cast<int>(__umulhi(static_cast<uint32_t>(x), factor));
  }
#endif
};

struct TileArgs {
  CUtensorMap shared_map;  // of the weights: all matrices below each other
  CUtensorMap experts_map;
  TilePart shared;
  TilePart experts;
  Divisor by_groups, by_tiles_n;  // groups of row tiles of the shared MLP; items of a tile
  int max_tiles = 0;              // bound of *experts.num_tiles
  bool in_pairs = false;          // tiles come as SortRows() orders them in pairs
  // The tiles were there before the kernel before this one began its work: the first weights do not
  // wait for that one.
  bool tiles_known = false;
  int tile_rows = 128;    // as SortRows() cut them
  int weight_rows = 128;  // of an item, where tiles have 64 rows
};

// Whether two blocks share weights: bf16 where most experts have more than one tile. FP8 tiles in
// pairs are twice as wide besides, so that rows are fetched half as often, which pays earlier.
inline bool TilesInPairs(bool fp8, int rows, int experts) {
  return fp8 ? rows >= kTileRows / 2 * experts : rows > kTileRows * experts;
}

// Whether 128 gate rows and their up rows each have one row of scales.
inline bool HalvesAreBlocks(const TileArgs& args) {
  return args.shared.n % 128 == 0 && args.experts.n % 128 == 0;
}
// Whether gated FP8 products round their outputs.
inline bool TilesRound(const TileArgs& args) { return args.in_pairs && HalvesAreBlocks(args); }

// By warpgroup products; fills in args' maps. max_tiles: bound of *experts.num_tiles.
void LaunchTileBf16(TileArgs& args, bool gated, int max_tiles, CudaContext& context);
// REQUIRES: scale blocks of 128 rows, w.k_lead 0, n and k multiples of 64 and 16.
void LaunchTileFp8(TileArgs& args, bool gated, int max_tiles, CudaContext& context);

// Boxes of 128 bytes by `box_rows` rows of all matrices, in the 128-byte swizzle; a column is 2
// bytes.
CUtensorMap WeightMap(const TilePart& part, DType dtype, int box_rows);

// Moe() of many rows per expert.
bool MoeTileFits(const MoeParams& p, const CudaContext& context);
void MoeTile(const MoeParams& p, CudaContext& context);
int64_t MoeTileBytes(const OpLimits& limits);

}  // namespace hadal::cuda
