#pragma once

#include <cstdint>

#include "kernels/cuda/moe_device.cuh"

namespace hadal::cuda {

// Pieces of the weight-streaming products. A weight row is the A side of mma.sync m16n8k16, a token
// the B side. The order of k within a product is free, so a lane multiplies the 16 consecutive bytes
// that it loads: no shuffles, no ldmatrix.

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
__device__ __forceinline__ void CopyAsync4(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from));
}
__device__ __forceinline__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
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
__device__ __forceinline__ float LoadSharedFloat(uint32_t at) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(at));
  return v;
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

// Activations that meet one lane's 16 bytes of a weight row: 8 bf16, or 16 beside FP8.
template <typename W>
struct Activations {
  uint4 at[sizeof(W) == 1 ? 2 : 1];
};

// c += w x, w0 and w1 being the lane's bytes of rows g and g + 8.
__device__ __forceinline__ void MultiplyStep(MmaSums& c, const uint4& w0, const uint4& w1,
                                             const Activations<bf16>& x) {
  Mma(c, w0.x, w1.x, w0.y, w1.y, x.at[0].x, x.at[0].y);
  Mma(c, w0.z, w1.z, w0.w, w1.w, x.at[0].z, x.at[0].w);
}
__device__ __forceinline__ void MultiplyFp8Word(MmaSums& c, uint32_t w0, uint32_t w1, uint32_t x01,
                                                uint32_t x23) {
  const ExpandedFp8 a = ExpandFp8(w0), b = ExpandFp8(w1);
  Mma(c, a.even, b.even, a.odd, b.odd, __byte_perm(x01, x23, 0x5410), __byte_perm(x01, x23, 0x7632));
}
__device__ __forceinline__ void MultiplyStep(MmaSums& c, const uint4& w0, const uint4& w1,
                                             const Activations<fp8>& x) {
  MultiplyFp8Word(c, w0.x, w1.x, x.at[0].x, x.at[0].y);
  MultiplyFp8Word(c, w0.y, w1.y, x.at[0].z, x.at[0].w);
  MultiplyFp8Word(c, w0.z, w1.z, x.at[1].x, x.at[1].y);
  MultiplyFp8Word(c, w0.w, w1.w, x.at[1].z, x.at[1].w);
}

}  // namespace hadal::cuda
