#pragma once

#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/experts/half_f8.cuh"
#include "kernels/cuda/experts/moe_mma.cuh"
#include "kernels/cuda/weights/weight_view.cuh"

namespace hadal::cuda {

// A step of few tokens' experts: a warp multiplies 128 or 256 bytes of each of 16 weight rows, with
// FP8 one or two blocks of scales, by as many columns of up to 8 tokens. Every warp has a ring of
// steps in shared memory that only it fills and reads; what it has read it fills again before it
// multiplies. With FP8 weights these kernels wait for instructions as much as for memory: w13 by 12
// warps and with steps of 128 bytes takes one token 2.5 us longer, four 7 us (H200).

template <typename W>
inline constexpr bool kIsF8 = sizeof(W) == 1;
inline constexpr int kFewParts = 2;  // of a block, 64 bytes of a row each

// kBlocks: of a step, 128 bytes of a row each.
template <typename W, int kBlocksOfStep>
struct FewStep {
  static constexpr int kBlocks = kBlocksOfStep;
  static constexpr int kBytes = kBlocks * 128;  // of a row
  static constexpr int kColumns = kBytes / static_cast<int>(sizeof(W));
  static constexpr int kWeightBytes = kBlocks * kFewParts * 2 * 512;
  // A slot of the ring: [block][part][row half][lane] 16 bytes, as the lanes copied them, then the
  // scales, [block][16 rows].
  static constexpr int kSlotBytes = kWeightBytes + (kIsF8<W> ? kBlocks * 64 : 0);

  // Steps of a row of that many columns.
  static __host__ __device__ constexpr int Count(int columns) {
    return (columns + kColumns - 1) / kColumns;
  }

  // What a lane has of a step: 16 bytes of each part of rows g and g + 8, and those rows' scales.
  struct Weights {
    uint4 part[kBlocks][kFewParts][2];
    float scale[kBlocks][2];

    __device__ __forceinline__ explicit Weights(uint32_t slot) {
      const int lane = threadIdx.x % 32;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int i = 0; i < 2 * kFewParts; ++i) {
          part[b][i / 2][i % 2] = LoadShared16(slot + (b * 2 * kFewParts + i) * 512 + lane * 16);
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint32_t at = slot + kWeightBytes + (b * 16 + h * 8 + lane / 4) * 4;
          scale[b][h] = kIsF8<W> ? LoadSharedFloat(at) : 1.0f;
        }
      }
    }
  };

  // Where a lane reads. Rows that are not there are read as the first, columns as others of the
  // row: callers drop the sums of those and multiply these by zeros. REQUIRES: a matrix has less
  // than 2 GiB.
  struct Rows {
    const char* row[2];  // g and g + 8, from the lane's first 16 bytes on
    const float* scale;  // of row lane % 16
    int bytes;           // of a row
    int lead;  // bytes of step 0 that the rows do not have: of their first block of scales
    int last_block;

    // Two times 8 rows.
    __device__ __forceinline__ Rows(const WeightView& w, int matrix, int first0, int first1)
        : bytes(static_cast<int>(w.stride) * static_cast<int>(sizeof(W))),
          lead(kIsF8<W> ? w.k_lead : 0),
          last_block(static_cast<int>(w.k_blocks) - 1) {
      const int n = static_cast<int>(w.n), lane = threadIdx.x % 32;
      const char* from = static_cast<const char*>(w.data) + int64_t{matrix} * (n * bytes);
      const auto inside = [&](int r) { return r < n ? r : 0; };
      row[0] = from + (inside(first0 + lane / 4) * bytes + lane % 4 * 16);
      row[1] = from + (inside(first1 + lane / 4) * bytes + lane % 4 * 16);
      if constexpr (kIsF8<W>) {
        const int r = inside((lane % 16 < 8 ? first0 : first1) + lane % 8);
        const int scale_row =
            matrix * static_cast<int>(w.scale_n) + (w.scale_rows == 1 ? r : r >> 7);
        scale = w.scale + int64_t{scale_row} * static_cast<int>(w.k_blocks);
      }
    }
    Rows() = default;

    __device__ __forceinline__ void Copy(uint32_t slot, int step) const {
      const int lane = threadIdx.x % 32, first = step * kBytes - lead;
      const uint32_t to = slot + lane * 16;
      if (kIsF8<W> && lane < 16 * kBlocks) {
        CopyAsync4(slot + kWeightBytes + lane * 4,
                   scale + min(step * kBlocks + lane / 16, last_block));
      }
      if (first >= 0 && first + kBytes <= bytes) {
#pragma unroll
        for (int i = 0; i < 4 * kBlocks; ++i) {
          CopyOnce16(to + i * 512, row[i % 2] + first + i / 2 * 64);
        }
        return;
      }
      const int own = lane % 4 * 16;
#pragma unroll
      for (int i = 0; i < 4 * kBlocks; ++i) {
        const int at = max(min(first + i / 2 * 64, bytes - 16 - own), -own);
        CopyOnce16(to + i * 512, row[i % 2] + at);
      }
    }
  };
};

// A place in a ring. `ring` must not come from a warp index that the compiler knows to be the same
// for all lanes: it then adds it to addresses in a form of the copy that the card refuses
// (CUDA 13.0).
struct FewSlot {
  uint32_t begin, end, at;

  __device__ FewSlot(uint32_t ring, int bytes) : begin(ring), end(ring + bytes), at(ring) {}
  __device__ __forceinline__ void Next(int bytes) {
    at += bytes;
    if (at == end) at = begin;
  }
};

// Columns of the lane's token beside its weights; with FP8 in f16.
template <typename W>
using FewTokens = TokenOperand<W>[kFewParts];  // of a block

// 16 columns in f16 beside 16 bytes of FP8 weights.
__device__ __forceinline__ void HalfTokens(const uint4& low, const uint4& high,
                                           TokenOperand<fp8>& to) {
  const uint32_t x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) to.b[i / 2][i % 2] = x[i];
}

// sum += w x.
template <typename W>
__device__ __forceinline__ void MultiplyPart(const uint4 (&w)[2], const TokenOperand<W>& x,
                                             MmaSums& sum) {
  if constexpr (kIsF8<W>) {
    const uint32_t u0[4] = {w[0].x, w[0].y, w[0].z, w[0].w};
    const uint32_t u1[4] = {w[1].x, w[1].y, w[1].z, w[1].w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const HalfCodes a(u0[i]), b(u1[i]);
      MmaHalf(sum, a.low, b.low, a.high, b.high, x.b[i][0], x.b[i][1]);
    }
  } else {
    Multiply(sum, WeightsOf<W>(w[0], w[1]), x);
  }
}

// total += the products of a block times the rows' scales, times the factors of tokens 2 q and
// 2 q + 1. Two chains, as a product waits for the one before it.
template <typename W, typename Weights>
__device__ __forceinline__ void AddBlock(const Weights& w, int block, const FewTokens<W>& x,
                                         float2 token, MmaSums& total) {
  MmaSums sum[kFewParts] = {};
#pragma unroll
  for (int i = 0; i < kFewParts; ++i) MultiplyPart<W>(w.part[block][i], x[i], sum[i]);
  const float factor[2] = {token.x, token.y};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    total.at[j] += w.scale[block][j / 2] * factor[j % 2] * (sum[0].at[j] + sum[1].at[j]);
  }
}

}  // namespace hadal::cuda
