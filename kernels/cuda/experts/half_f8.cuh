#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/cuda/experts/moe_mma.cuh"

namespace hadal::cuda {

// bf16 activations beside FP8 weights, for the f16 tensor cores, without rounding either: e4m3 is
// exact in f16, and f16 has more significant bits than bf16. A power of two per token and 128
// columns brings the largest activation into [2^14, 2^15); what lies more than 2^31 below it loses
// bits.
struct HalfScale {
  float up, down;
};

__device__ __forceinline__ uint32_t Magnitudes(uint32_t a, uint32_t b) {
  constexpr uint32_t kMagnitudes = 0x7fff7fffu;
  return __vmaxu2(a & kMagnitudes, b & kMagnitudes);
}

// most: the magnitude of the largest of those 128, a bf16. Infinities and NaNs make it NaN.
__device__ __forceinline__ HalfScale HalfScaleOf(uint32_t most) {
  const uint32_t exponent = max(most >> 7, 15u);
  return {__uint_as_float((268 - exponent) << 23),  // 2^14 at exponent 127
          __uint_as_float(exponent == 255 ? 0x7fc00000u : (exponent - 14) << 23)};
}

__device__ __forceinline__ uint32_t HalfPair(uint32_t pair, float up) {
  const __half2 h =
      __floats2half2_rn(__uint_as_float(pair << 16) * up, __uint_as_float(pair & 0xffff0000u) * up);
  return reinterpret_cast<const uint32_t&>(h);
}

// A warp makes 128 columns of a token, lane i columns 4 i .. 4 i + 3; returns the factor that takes
// the scale back.
__device__ __forceinline__ float Halves(uint2& x) {
  const uint32_t pair = Magnitudes(x.x, x.y);
  const HalfScale scale =
      HalfScaleOf(__reduce_max_sync(0xffffffffu, max(pair >> 16, pair & 0xffffu)));
  x = {HalfPair(x.x, scale.up), HalfPair(x.y, scale.up)};
  return scale.down;
}

// Codes 0 and 1, and 2 and 3, of four.
struct HalfCodes {
  uint32_t low, high;

  __device__ __forceinline__ explicit HalfCodes(uint32_t codes) {
#if __CUDA_ARCH__ >= 890
    asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\n"
        "cvt.rn.f16x2.e4m3x2 %0, l;\ncvt.rn.f16x2.e4m3x2 %1, h;\n}"
        : "=r"(low), "=r"(high)
        : "r"(codes));
#else
    low = Pair(codes & 0xffffu);
    high = Pair(codes >> 16);
#endif
  }

 private:
  static __device__ uint32_t Pair(uint32_t two) {
    const __half2_raw h =
        __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(two), __NV_E4M3);
    return h.x | static_cast<uint32_t>(h.y) << 16;
  }
};

__device__ __forceinline__ void MmaHalf(MmaSums& c, uint32_t a0, uint32_t a1, uint32_t a2,
                                        uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c.at[0]), "+f"(c.at[1]), "+f"(c.at[2]), "+f"(c.at[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

}  // namespace hadal::cuda
