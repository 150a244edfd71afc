#pragma once

#include "kernels/cuda/attention/mla_prefill.cuh"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/rows/quantise_row.cuh"

// What the flash kernels share: head dims 128 + 64 and 128, bf16; a thread holds columns
// 8 n + 2 (lane % 4) and the next of rows lane / 4 and lane / 4 + 8 of its warp's 16 queries, which
// is how both mma.sync and wgmma leave their sums.

namespace hadal::cuda::flash {

inline constexpr int kNope = 128;
inline constexpr int kRope = 64;
inline constexpr int kQk = kNope + kRope;
inline constexpr int kV = 128;
inline constexpr int kQueries = 128;  // of one CTA

// What one CTA does: queries first .. of a segment, one head.
struct Work {
  const PrefillSegment& s;
  int head;
  int first;  // query of the row
  int keys;   // of the segment that its last query sees; none: <= 0

  __device__ Work(const PrefillArgs& p, const PrefillPiece& piece, int index)
      : s(piece.segments[SegmentOfTile(piece, TileOf(p, piece, index))]),
        head(index % p.group_heads) {
    first = (TileOf(p, piece, index) - s.first_tile) * kQueries;
    const int last = min(s.row.num_tokens, first + kQueries) - 1;
    keys = min(s.key_end, s.row.start_pos + last + 1) - s.key_begin;
  }
  // The last tiles of a row see most keys and go first.
  static __device__ int TileOf(const PrefillArgs& p, const PrefillPiece& piece, int index) {
    return piece.tiles - 1 - index / p.group_heads;
  }
  __device__ int64_t Token(int query) const { return s.row.first_token + query; }
  // Keys of the row that the query sees.
  __device__ int Sees(int query) const { return s.row.start_pos + query + 1; }
};

// Of rows `lane / 4` and `lane / 4 + 8` of a warp; l is the thread's own share.
struct RowState {
  float m[2];
  float l[2];
  int limit[2];  // keys of the segment that the row sees
};

template <int kTiles>
__device__ __forceinline__ void Mask(int key, const RowState& state, float (&s)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = key + n * 8 + static_cast<int>(threadIdx.x % 4) * 2 + i % 2;
      if (column >= state.limit[i / 2]) s[n][i] = -INFINITY;
    }
  }
}

// Turns scores into weights; the sums so far have to be multiplied by alpha.
template <int kTiles>
__device__ __forceinline__ void Weights(float scale_log2, float (&s)[kTiles][4], RowState& state,
                                        float (&alpha)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float m = s[0][2 * r];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) m = fmaxf(m, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
    m = fmaxf(state.m[r], m * scale_log2);
    const float base = m == -INFINITY ? 0.0f : m;
    alpha[r] = Exp2(state.m[r] - base);
    float l[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        s[n][2 * r + i] = Exp2(fmaf(s[n][2 * r + i], scale_log2, -base));
        l[i] += s[n][2 * r + i];
      }
    }
    state.m[r] = m;
    state.l[r] = fmaf(state.l[r], alpha[r], l[0] + l[1]);
  }
}

__device__ __forceinline__ void Rescale(const float (&alpha)[2], float (&o)[16][4]) {
#pragma unroll
  for (int n = 0; n < 16; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) o[n][i] *= alpha[i / 2];
  }
}

// Weights of 16 keys as the first operand of a product.
template <int kTiles>
__device__ __forceinline__ void PackWeights(const float (&s)[kTiles][4], int step,
                                            uint32_t (&p)[4]) {
  p[0] = PackBf16(s[2 * step][0], s[2 * step][1]);
  p[1] = PackBf16(s[2 * step][2], s[2 * step][3]);
  p[2] = PackBf16(s[2 * step + 1][0], s[2 * step + 1][1]);
  p[3] = PackBf16(s[2 * step + 1][2], s[2 * step + 1][3]);
}

// Where thread-owned sums of a row lie in the state of the softmax.
__device__ __forceinline__ int64_t StateRow(const PrefillArgs& p, const Work& w, int query) {
  return w.Token(query) * p.group_heads + w.head;
}

// `query`: of the first of the thread's two rows.
__device__ __forceinline__ void Begin(const PrefillArgs& p, const Work& w, int query,
                                      RowState& state, float (&o)[16][4]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = query + 8 * r;
    const bool valid = i < w.s.row.num_tokens;
    state.m[r] = -INFINITY;
    state.l[r] = 0;
    state.limit[r] = valid ? min(w.Sees(i), w.s.key_end) - w.s.key_begin : 0;
    const bool resume = valid && w.s.key_begin > 0 && state.limit[r] > 0;
    const int64_t at = resume ? StateRow(p, w, i) : 0;
    if (resume) {
      const float2 ml = p.state_ml[at];
      state.m[r] = ml.x;
      state.l[r] = threadIdx.x % 4 == 0 ? ml.y : 0;
    }
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      const int64_t column = n * 8 + threadIdx.x % 4 * 2;
      o[n][2 * r] = resume ? p.state_o[at * kV + column] : 0.0f;
      o[n][2 * r + 1] = resume ? p.state_o[at * kV + column + 1] : 0.0f;
    }
  }
}

static_assert(kV == kQuantiseColumns);

// A row's outputs as Quantise() rounds them; pairs: the thread's columns, by four lanes of a warp.
__device__ __forceinline__ void StoreRounded(const PrefillArgs& p, const Work& w, int64_t token,
                                             const uint32_t (&pairs)[16]) {
  const auto value = [&](int n) {
    return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(pairs[n]));
  };
  const uint32_t four = 0xfu << threadIdx.x % 32 / 4 * 4;
  float amax = kQuantiseLeast;
#pragma unroll
  for (int n = 0; n < 16; ++n) {
    const float2 v = value(n);
    amax = fmaxf(amax, fmaxf(fabsf(v.x), fabsf(v.y)));
  }
  amax = fmaxf(amax, __shfl_xor_sync(four, amax, 1));
  amax = fmaxf(amax, __shfl_xor_sync(four, amax, 2));
  uint8_t* codes = p.rounded.codes + token * p.rounded.code_stride + w.head * kV;
#pragma unroll
  for (int n = 0; n < 16; ++n) {
    *reinterpret_cast<__nv_fp8x2_storage_t*>(codes + n * 8 + threadIdx.x % 4 * 2) =
        RoundPair(value(n), 448.0f / amax);
  }
  if (threadIdx.x % 4 == 0) {
    p.rounded.scales[token * p.rounded.scale_row_stride + w.head * p.rounded.scale_block_stride] =
        amax / 448.0f;
  }
}

__device__ __forceinline__ void End(const PrefillArgs& p, const Work& w, int query,
                                    const RowState& state, const float (&o)[16][4]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = query + 8 * r;
    float l = state.l[r];
    l += __shfl_xor_sync(0xffffffffu, l, 1);
    l += __shfl_xor_sync(0xffffffffu, l, 2);
    if (state.limit[r] <= 0) continue;
    const int column = threadIdx.x % 4 * 2;
    if (w.Sees(i) <= w.s.key_end) {
      const int64_t token = w.Token(i);
      const float inverse = 1.0f / l;
      uint32_t pairs[16];
#pragma unroll
      for (int n = 0; n < 16; ++n) {
        pairs[n] = PackBf16(o[n][2 * r] * inverse, o[n][2 * r + 1] * inverse);
      }
      if (token < p.rounded.rows) {
        StoreRounded(p, w, token, pairs);
        continue;
      }
      auto* out = static_cast<__nv_bfloat16*>(p.out) + token * p.out_stride + w.head * kV;
#pragma unroll
      for (int n = 0; n < 16; ++n) *reinterpret_cast<uint32_t*>(out + n * 8 + column) = pairs[n];
    } else {
      const int64_t at = StateRow(p, w, i);
      if (threadIdx.x % 4 == 0) p.state_ml[at] = make_float2(state.m[r], l);
#pragma unroll
      for (int n = 0; n < 16; ++n) {
        *reinterpret_cast<float2*>(p.state_o + at * kV + n * 8 + column) =
            make_float2(o[n][2 * r], o[n][2 * r + 1]);
      }
    }
  }
}

}  // namespace hadal::cuda::flash
