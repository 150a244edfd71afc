#pragma once

#include <cstdint>

#include "kernels/cuda/moe_device.cuh"

namespace hadal::cuda {

// Pieces of the weight-streaming products. A weight row is the A side of mma.sync m16n8k16, a token
// the B side. The order of k within a product is free, so a lane multiplies the 16 consecutive
// bytes that it loads: no shuffles, no ldmatrix.

struct MmaSums {
  float at[4];  // row g: columns 2q, 2q + 1; row g + 8: the same; g = lane / 4, q = lane % 4
};

__device__ __forceinline__ void Mma(MmaSums& c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                    uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c.at[0]), "+f"(c.at[1]), "+f"(c.at[2]), "+f"(c.at[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// 16 bytes; zeros when not valid (`from` must still be a readable address).
__device__ __forceinline__ void CopyAsync16(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0));
}
__device__ __forceinline__ void CopyAsync8(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 8 : 0));
}
__device__ __forceinline__ void CopyAsync4(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from));
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void AwaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ uint4 LoadShared16(uint32_t at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at));
  return v;
}
__device__ __forceinline__ uint32_t LoadShared4(uint32_t at) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
  return v;
}
__device__ __forceinline__ float LoadSharedFloat(uint32_t at) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(at));
  return v;
}

__device__ __forceinline__ void StoreShared2(uint32_t at, uint16_t v) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(v));
}
__device__ __forceinline__ void StoreShared4(uint32_t at, uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v));
}

// Bytes 0 and 2, and bytes 1 and 3 of four e4m3 codes as pairs of bf16, exactly. The exponent is
// moved to its place and its bias corrected by a factor of 2^120.
struct ExpandedFp8 {
  uint32_t even, odd;
};
__device__ __forceinline__ uint32_t Rebias(uint32_t x) {
  uint32_t y;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(x), "r"(0x7b807b80u), "r"(0x80008000u));
  return y;
}
__device__ __forceinline__ ExpandedFp8 ExpandFp8(uint32_t codes) {
  const uint32_t even = (codes << 8 & 0x80008000u) | (codes << 4 & 0x07f007f0u);
  const uint32_t odd = (codes & 0x80008000u) | (codes >> 4 & 0x07f007f0u);
  return {Rebias(even), Rebias(odd)};
}

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
    Mma(c, w.a[i][0], w.a[i][1], w.a[i][2], w.a[i][3], x.b[i][0], x.b[i][1]);
  }
}

}  // namespace hadal::cuda
