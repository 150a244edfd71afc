#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/weights/weight_view.cuh"

// Operands and tiles of matmul_skinny.cuh, and how they get to shared memory.
namespace hadal::cuda {

struct SkinnyArgs {
  const __nv_bfloat16* x;
  int64_t x_stride, x_matrix_stride;  // elements
  const char* w;
  int64_t row_bytes, matrix_bytes;
  const float* scale;  // as in CudaPackedWeight
  int scale_rows, k_lead;
  int64_t scale_n, k_blocks;
  void* y;
  int64_t y_stride, y_matrix_stride;
  bool float_out;
  int m;
  int token_blocks;
  int64_t k;
  int64_t n;        // outputs; of silu_mul half the rows of w
  bool silu_mul;    // a block's second half of rows lies n rows behind its first
  int steps;        // of all inputs
  int split_steps;  // of one block
};

template <typename W, int kTokenTiles_, int kRows_, int kStages_, int kBlocksPerSm_>
struct SkinnyTile {
  using Weight = W;
  static constexpr bool kF8 = sizeof(W) == 1;
  static constexpr int kThreads = 256;
  static constexpr int kTokenTiles = kTokenTiles_;
  static constexpr int kTokens = 8 * kTokenTiles;
  static constexpr int kRows = kRows_;
  static constexpr int kStages = kStages_;
  static constexpr int kBlocksPerSm = kBlocksPerSm_;
  static constexpr int kRowGroups = kRows / 32;         // warps over outputs
  static constexpr int kDepthGroups = 8 / kRowGroups;   // warps over halves of a step
  static constexpr int kStepBytes = 128;                // of a row of weights
  static constexpr int kStep = kStepBytes / sizeof(W);  // inputs; of FP8 one scale block
  static constexpr int kXBytes = 2 * kStep;             // of a token
  static constexpr int kXChunks = kXBytes / 16;
  static constexpr int kWeightBytes = kRows * kStepBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kXBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kPartialStride = kRows + 4;  // floats; no bank is hit twice
  static constexpr int kPartialBytes = kDepthGroups * kTokens * kPartialStride * 4;
  static_assert(kPartialBytes <= kSharedBytes);
  static_assert(kDepthGroups <= 2);

  // Where chunk c (16 bytes) of a row lies in the tile, so that the eight lanes that read together
  // (two rows, four chunks) hit all banks.
  __device__ static int WeightAt(int row, int c) {
    return row * kStepBytes + ((c ^ ((row & 1) << 2)) << 4);
  }
  __device__ static int XAt(int token, int c) {
    return token * kXBytes + ((c ^ (kF8 ? token & 1 : (token & 1) << 2)) << 4);
  }
};

// What a thread needs to fetch its part of every step.
template <typename Tile>
struct SkinnyLoader {
  static constexpr int kHalf = Tile::kRows / 2;
  static constexpr int kPasses = Tile::kRows / 32;
  const SkinnyArgs& a;     // in constant memory
  const char* w;           // its chunk of its first row, step 0
  const __nv_bfloat16* x;  // token 0 of the block
  int tokens;
  uint32_t valid_rows = 0;  // bit i: row i * 32 + thread / 8 exists
  uint32_t shared;

  __device__ SkinnyLoader(const SkinnyArgs& args, int64_t matrix, int64_t token_block,
                          uint32_t base)
      : a(args), shared(base) {
    const int first = threadIdx.x / 8;
    const int64_t row0 = int64_t{blockIdx.y} * (a.silu_mul ? kHalf : Tile::kRows);
    w = a.w + matrix * a.matrix_bytes + (row0 + first) * a.row_bytes + (threadIdx.x % 8) * 16;
    for (int i = 0; i < kPasses; ++i) {
      const int64_t row = row0 + first + 32 * i - (a.silu_mul && i >= kPasses / 2 ? kHalf : 0);
      valid_rows |= static_cast<uint32_t>(row < a.n) << i;
    }
    x = a.x + matrix * a.x_matrix_stride + token_block * Tile::kTokens * a.x_stride;
    tokens = min(Tile::kTokens, a.m - static_cast<int>(token_block) * Tile::kTokens);
  }

  __device__ void Weights(int step, int stage) const {
    const int at = step * Tile::kStepBytes - a.k_lead;  // k_lead is 0 but for bytes
    const int col = at + static_cast<int>(threadIdx.x % 8) * 16;
    const bool inside = col >= 0 && col < a.row_bytes;
    const uint32_t to = shared + stage * Tile::kStageBytes;
    const int64_t up_bytes = a.silu_mul ? (a.n - kHalf) * a.row_bytes : 0;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const bool valid = inside && (valid_rows >> i & 1);
      const int64_t offset = at + 32 * i * a.row_bytes + (i >= kPasses / 2 ? up_bytes : 0);
      CopyOnce16(to + Tile::WeightAt(threadIdx.x / 8 + 32 * i, threadIdx.x % 8),
                 valid ? w + offset : reinterpret_cast<const char*>(x), valid);
    }
  }

  // Chunk i of a step's activations: its place, and its source or null for zeros.
  __device__ const __nv_bfloat16* XChunk(int step, int i, int* at) const {
    const int token = i / Tile::kXChunks, c = i % Tile::kXChunks;
    *at = Tile::kWeightBytes + Tile::XAt(token, c);
    const int col = step * Tile::kStep - a.k_lead + c * 8;
    return token < tokens && col >= 0 && col < a.k ? x + token * a.x_stride + col : nullptr;
  }

  __device__ void X(int step, int stage) const {
    const uint32_t to = shared + stage * Tile::kStageBytes;
    constexpr int kCount = Tile::kTokens * Tile::kXChunks;
#pragma unroll
    for (int i = threadIdx.x; i < kCount; i += Tile::kThreads) {
      int at;
      const __nv_bfloat16* from = XChunk(step, i, &at);
      CopyAsync16(to + at, from == nullptr ? x : from, from != nullptr);
    }
  }

  // The activations of the first steps, not in the background: the groups of copies then hold
  // weights of one step each, which arrive one after the other.
  __device__ void FirstX(int first_step, int count) const {
    constexpr int kPerStep = Tile::kTokens * Tile::kXChunks, kUnroll = 4;
    for (int i0 = threadIdx.x; i0 < count * kPerStep; i0 += Tile::kThreads * kUnroll) {
      uint4 v[kUnroll];
      int at[kUnroll];
#pragma unroll
      for (int j = 0; j < kUnroll; ++j) {
        const int i = i0 + j * Tile::kThreads;
        v[j] = make_uint4(0, 0, 0, 0);
        at[j] = -1;
        if (i >= count * kPerStep) continue;
        const int stage = i / kPerStep;
        const __nv_bfloat16* from = XChunk(first_step + stage, i % kPerStep, &at[j]);
        at[j] += stage * Tile::kStageBytes;
        if (from != nullptr) v[j] = *reinterpret_cast<const uint4*>(from);
      }
#pragma unroll
      for (int j = 0; j < kUnroll; ++j) {
        if (at[j] >= 0) StoreShared16(shared + at[j], v[j]);
      }
    }
  }
};

}  // namespace hadal::cuda
