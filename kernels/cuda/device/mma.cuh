#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace hadal::cuda {

// A lane's part of a product of 16 rows and 8 columns.
struct MmaSums {
  float at[4];  // row g: columns 2q, 2q + 1; row g + 8: the same; g = lane / 4, q = lane % 4
};

// d += a b for a 16x16 tile of a and a 16x8 tile of b. Lane (g = lane / 4, t = lane % 4) holds
// a[0]: row g, columns 2t and 2t + 1; a[1]: row g + 8; a[2], a[3]: the same 8 columns further;
// b[0]: column g, rows 2t and 2t + 1; b[1]: 8 rows further;
// d[0], d[1]: row g, columns 2t and 2t + 1; d[2], d[3]: row g + 8.
// Sums over the inner index commute: any order of it will do that a and b share.
__device__ __forceinline__ void MmaBf16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                        uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  MmaBf16(d, a[0], a[1], a[2], a[3], b0, b1);
}

// Four e4m3 codes as bf16, exactly: codes 0 and 1 in `low`, 2 and 3 in `high`. NaN codes become
// 480.
__device__ __forceinline__ void DecodeF8(uint32_t codes, uint32_t* low, uint32_t* high) {
  // Exponent and mantissa in the middle of a bf16 stand for 2^-120 of their value, subnormals too.
  const uint32_t pairs[2] = {__byte_perm(codes, 0, 0x1404), __byte_perm(codes, 0, 0x3424)};
  uint32_t out[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t bits = (pairs[i] & 0x80008000u) | ((pairs[i] >> 4) & 0x07f007f0u);
    const uint32_t factor = 0x7b807b80u;  // 2^120, twice
    const __nv_bfloat162 value = __hmul2(reinterpret_cast<const __nv_bfloat162&>(bits),
                                         reinterpret_cast<const __nv_bfloat162&>(factor));
    out[i] = reinterpret_cast<const uint32_t&>(value);
  }
  *low = out[0];
  *high = out[1];
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

}  // namespace hadal::cuda
