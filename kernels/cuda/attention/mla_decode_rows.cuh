#pragma once

#include "kernels/cuda/attention/mla_schedule.cuh"
#include "kernels/cuda/device/convert.cuh"

// Where the queries of an item lie, and where its outputs or parts of them go.

namespace hadal::cuda {

// Keys that the query of (query, head) pair `pair` sees.
__device__ __forceinline__ int KeysOfPair(const DecodeArgs& a, const DecodeItem& item, int pair) {
  return pair < item.pairs ? item.row.start_pos + pair / a.p.heads + 1 : 0;
}

// Where the query of a (query, head) pair lies. Of a pair that the item has not, another's.
struct QueryRow {
  const __nv_bfloat16* latent;
  const __nv_bfloat16* rope;
  bool valid;

  __device__ __forceinline__ QueryRow(const DecodeArgs& a, const DecodeItem& item, int pair)
      : valid(pair < item.pairs) {
    pair = min(pair, item.pairs - 1);
    const int query = pair / a.p.heads, head = pair % a.p.heads;
    const int64_t token = item.row.first_token + query;
    latent = static_cast<const __nv_bfloat16*>(a.p.q_latent) +
             (token * a.p.heads + head) * kDecodeLatent;
    rope = static_cast<const __nv_bfloat16*>(a.p.q_rope) + token * a.p.q_rope_stride +
           head * a.p.q_rope_head_stride;
  }
  __device__ __forceinline__ const __nv_bfloat16* At(int column) const {
    return column < kDecodeLatent ? latent + column : rope + (column - kDecodeLatent);
  }
};

// The output of row `row` of a piece.
__device__ __forceinline__ __nv_bfloat16* OutputRow(const DecodeArgs& a, const DecodeItem& item,
                                                    int row) {
  const int64_t at = static_cast<int64_t>(item.row.first_token) * a.p.heads + item.first + row;
  return static_cast<__nv_bfloat16*>(a.p.out) + at * kDecodeLatent;
}

// Of four lanes, lane i gets what they have in x[i]: x[j] is then lane j's.
__device__ __forceinline__ void TransposeFour(uint32_t (&x)[4]) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = (threadIdx.x & bit) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & bit) != 0) continue;
      const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? x[i] : x[i | bit], bit);
      (upper ? x[i] : x[i | bit]) = got;
    }
  }
}

// Columns column + 8 n and the next of row `row` of the segment: o[n][2 r] and o[n][2 r + 1]; (m,
// l) of the row. Finished, or as a part of which one thread, the `leader`, notes m and l. By whole
// warps, column = .. + 2 (lane % 4).
template <int kTiles>
__device__ __forceinline__ void StoreRow(const DecodeArgs& a, const DecodeSegment& s, int row,
                                         int column, const float (&o)[kTiles][4], int r, float m,
                                         float l, bool leader) {
  const bool inside = s.item.first + row < s.item.pairs;
  if (s.Whole()) {
    const int lane = threadIdx.x % 4;
    __nv_bfloat16* out = OutputRow(a, s.item, row) + column - 2 * lane + 8 * lane;
    const float inverse = 1.0f / l;
#pragma unroll
    for (int n = 0; n < kTiles; n += 4) {
      uint32_t x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] = PackBf16(o[n + i][2 * r] * inverse, o[n + i][2 * r + 1] * inverse);
      }
      TransposeFour(x);
      if (inside) *reinterpret_cast<uint4*>(out + n * 8) = make_uint4(x[0], x[1], x[2], x[3]);
    }
  } else if (inside) {
    const int64_t part = (static_cast<int64_t>(blockIdx.x) * 2 + s.Slot()) * a.piece_rows + row;
    float* out = a.part_o + part * kDecodeLatent + column;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      *reinterpret_cast<float2*>(out + n * 8) = make_float2(o[n][2 * r], o[n][2 * r + 1]);
    }
    if (leader) a.part_ml[part] = make_float2(m, l);
  }
}

// Merged columns 4 at .. 4 at + 3 of row `row` of the item.
__device__ __forceinline__ void StoreMerged(const DecodeArgs& a, const DecodeItem& item, int row,
                                            int at, float4 sum) {
  if (item.first + row >= item.pairs) return;
  reinterpret_cast<uint2*>(OutputRow(a, item, row))[at] =
      make_uint2(PackBf16(sum.x, sum.y), PackBf16(sum.z, sum.w));
}

}  // namespace hadal::cuda
