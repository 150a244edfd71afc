#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace hadal::cuda {

// d += a b for a 16x16 tile of a and a 16x8 tile of b. Lane (g = lane / 4, t = lane % 4) holds
// a[0]: row g, columns 2t and 2t + 1; a[1]: row g + 8; a[2], a[3]: the same 8 columns further;
// b[0]: column g, rows 2t and 2t + 1; b[1]: 8 rows further;
// d[0], d[1]: row g, columns 2t and 2t + 1; d[2], d[3]: row g + 8.
// Sums over the inner index commute: any order of it will do that a and b share.
__device__ inline void MmaBf16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                               uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four e4m3 codes as bf16, exactly: codes 0 and 1 in `low`, 2 and 3 in `high`. NaN codes become
// 480.
__device__ inline void DecodeF8(uint32_t codes, uint32_t* low, uint32_t* high) {
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

// Copies 16 bytes to shared memory in the background, zeros when !valid. `from` must be a valid
// address all the same.
__device__ inline void CopyAsync16(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Until at most kPending of the groups committed by this thread are under way.
template <int kPending>
__device__ inline void AwaitCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

__device__ inline uint4 LoadShared16(uint32_t at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at));
  return v;
}
__device__ inline void StoreShared16(uint32_t at, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};\n" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

}  // namespace hadal::cuda
