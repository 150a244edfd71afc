#pragma once

#include <cstdint>

#include "kernels/cuda/device/mma.cuh"

namespace hadal::cuda {

// Pieces of the weight-streaming products. A weight row is the A side of mma.sync m16n8k16, a token
// the B side. The order of k within a product is free, so a lane multiplies the 16 consecutive
// bytes that it loads: no shuffles, no ldmatrix.

// One lane's operands of the products of 16 bytes of a weight row.
template <typename W>
inline constexpr int kMmas = sizeof(W) == 1 ? 4 : 2;
template <typename W>
inline constexpr int kXVectors = sizeof(W) == 1 ? 2 : 1;  // of 8 activations

template <typename W>
struct WeightOperand {
  uint32_t a[kMmas<W>][4];
};
template <typename W>
struct TokenOperand {
  uint32_t b[kMmas<W>][2];
};

// w0, w1: the lane's bytes of rows g and g + 8.
template <typename W>
__device__ __forceinline__ WeightOperand<W> WeightsOf(const uint4& w0, const uint4& w1) {
  const uint32_t u0[4] = {w0.x, w0.y, w0.z, w0.w}, u1[4] = {w1.x, w1.y, w1.z, w1.w};
  WeightOperand<W> o;
#pragma unroll
  for (int i = 0; i < kMmas<W>; ++i) {
    if constexpr (sizeof(W) == 1) {
      const ExpandedFp8 e0 = ExpandFp8(u0[i]), e1 = ExpandFp8(u1[i]);
      o.a[i][0] = e0.even;
      o.a[i][1] = e1.even;
      o.a[i][2] = e0.odd;
      o.a[i][3] = e1.odd;
    } else {
      o.a[i][0] = u0[2 * i];
      o.a[i][1] = u1[2 * i];
      o.a[i][2] = u0[2 * i + 1];
      o.a[i][3] = u1[2 * i + 1];
    }
  }
  return o;
}

// x: the activations beside those bytes, 8 or 16.
template <typename W>
__device__ __forceinline__ TokenOperand<W> TokensOf(const uint4 (&x)[kXVectors<W>]) {
  TokenOperand<W> o;
  if constexpr (sizeof(W) == 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t x01 = i % 2 == 0 ? x[i / 2].x : x[i / 2].z;
      const uint32_t x23 = i % 2 == 0 ? x[i / 2].y : x[i / 2].w;
      o.b[i][0] = __byte_perm(x01, x23, 0x5410);
      o.b[i][1] = __byte_perm(x01, x23, 0x7632);
    }
  } else {
    o.b[0][0] = x[0].x;
    o.b[0][1] = x[0].y;
    o.b[1][0] = x[0].z;
    o.b[1][1] = x[0].w;
  }
  return o;
}

template <typename W>
__device__ __forceinline__ void Multiply(MmaSums& c, const WeightOperand<W>& w,
                                         const TokenOperand<W>& x) {
#pragma unroll
  for (int i = 0; i < kMmas<W>; ++i) {
    MmaBf16(c.at, w.a[i][0], w.a[i][1], w.a[i][2], w.a[i][3], x.b[i][0], x.b[i][1]);
  }
}

}  // namespace hadal::cuda
