#pragma once

#include <cstdint>

#include "kernels/cuda/device/cuda_context.h"
#include "kernels/cuda/products/grouped_general.h"
#include "kernels/cuda/rows/quantise.cuh"

namespace hadal::cuda {

// The (token, choice) pairs of this rank, sorted by expert, then by token. Device memory.
struct MoeRows {
  int32_t* source = nullptr;     // [rows] token of each sorted row
  int32_t* row_of = nullptr;     // [tokens, top_k] sorted row, or -1: of another rank
  RowTile* tiles = nullptr;      // [num_tiles]
  int32_t* num_tiles = nullptr;  // [1]
  int32_t* num_rows = nullptr;   // [1]
  int max_tiles = 0;             // bound of num_tiles, known to the host
};

// The experts of a step and where they live.
struct MoeChoices {
  const int32_t* ids = nullptr;          // [tokens, top_k] expert or -1
  const int32_t* local_index = nullptr;  // [experts] or -1
  int tokens = 0;
  int top_k = 0;
  int experts = 0;
  int local_experts = 0;

  __host__ __device__ int rows() const { return tokens * top_k; }
};

inline constexpr int kMaxLocalExperts = 512;

// Sorts on the device and cuts the rows of each expert into tiles of at most `tile_rows`, in order
// of expert. in_pairs: tiles 2 i and 2 i + 1 are of one expert wherever that can be; the last tiles
// of two experts with odd numbers of them make a pair behind those of the second, so that their
// weights are still in the second-level cache. meanwhile: rows to round in the same kernel, or
// null.
MoeRows SortRows(const MoeChoices& choices, int tile_rows, CudaContext& context,
                 bool in_pairs = false, const QuantiseParams* meanwhile = nullptr);
int64_t SortRowsBytes(int64_t rows, int local_experts, int tile_rows);

}  // namespace hadal::cuda
