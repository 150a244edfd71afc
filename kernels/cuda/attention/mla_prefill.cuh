#pragma once

#include "kernels/cuda/attention/mla.cuh"
#include "kernels/cuda/rows/quantise.cuh"

// Prefill goes head group by head group and piece by piece: a piece is a run of context keys of a
// few rows whose latent rows are gathered and projected up into scratch, [keys, group_heads, dim];
// a flash kernel then lets the rows' queries see them. Rows longer than a piece carry the state of
// their softmax from piece to piece.

namespace hadal::cuda {

inline constexpr int kMaxSegments = 64;  // so that a piece fits a kernel's parameters

// The keys key_begin .. key_end of one row, at keys first_key .. of the scratch.
struct PrefillSegment {
  AttentionRow row;
  int key_begin = 0;
  int key_end = 0;
  int first_key = 0;
  int first_tile = 0;  // index of its first query tile in the piece
};

struct PrefillPiece {
  int count = 0;
  int keys = 0;   // of all segments
  int tiles = 0;  // query tiles of all segments
  PrefillSegment segments[kMaxSegments];
};

struct PrefillArgs {
  const void* q = nullptr;  // act; first head of the group
  int64_t q_stride = 0;
  void* out = nullptr;     // act; first head of the group
  int64_t out_stride = 0;  // between tokens
  // Of the flash kernels: tokens below rounded.rows leave codes and scales here, of which a block
  // is a head, instead of `out`; from the group's first head on.
  QuantiseParams rounded;
  int group_heads = 0;
  int nope_dim = 0;
  int rope_dim = 0;
  int v_dim = 0;
  float scale_log2 = 0;
  const void* k = nullptr;       // [keys, group_heads, nope_dim] act
  const void* v = nullptr;       // [keys, group_heads, v_dim] act
  const void* k_rope = nullptr;  // act; rotary part of the gathered latent row of key 0
  int64_t k_rope_stride = 0;
  float* state_o = nullptr;    // [tokens, group_heads, v_dim]; null: no row needs a state
  float2* state_ml = nullptr;  // [tokens, group_heads]
};

bool MmaPrefillAllowed(const MlaPrefillParams& p, const CudaContext& context);
int MmaPrefillTile();  // queries of one tile
void MmaPrefillPiece(const PrefillArgs& args, const PrefillPiece& piece, CudaContext& context);
bool WgmmaPrefillAllowed(const MlaPrefillParams& p, const CudaContext& context);
int WgmmaPrefillTile();
void WgmmaPrefillPiece(const PrefillArgs& args, const PrefillPiece& piece, CudaContext& context);

// The segment whose query tiles include `tile`. All threads get the same.
__device__ inline int SegmentOfTile(const PrefillPiece& piece, int tile) {
  int i = piece.count - 1;
  while (i > 0 && piece.segments[i].first_tile > tile) --i;
  return i;
}
__device__ inline int SegmentOfKey(const PrefillPiece& piece, int key) {
  int i = piece.count - 1;
  while (i > 0 && piece.segments[i].first_key > key) --i;
  return i;
}

}  // namespace hadal::cuda
