#pragma once

#include <cuda_fp8.h>

#include <cstdint>

namespace hadal::cuda {

// bf16 activations beside FP8 weights, for the FP8 tensor cores, without rounding them to FP8:
//   x = scale * (high + low / 32), high and low e4m3.
// bf16 has 8 significant bits and e4m3 4: high takes the upper ones to nearest, low the rest. The
// scale is a power of two per row and 128 columns that brings the largest value into [128, 256).
// What lies more than 2^14 below it loses bits, at most 2^-22 of the largest. The weights are
// multiplied as they lie in memory, by twice as many columns.
inline constexpr float kLowPart = 1.0f / 32;

// Eight columns of a row.
struct SplitEight {
  uint2 high, low;
};

__device__ __forceinline__ void SplitTwo(uint32_t pair, float scale, uint32_t* high,
                                         uint32_t* low) {
  const float a = __uint_as_float(pair << 16) * scale;
  const float b = __uint_as_float(pair & 0xffff0000u) * scale;
  const __nv_fp8x2_storage_t codes =
      __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
  const __half2_raw raw = __nv_cvt_fp8x2_to_halfraw2(codes, __NV_E4M3);
  const float2 taken = __half22float2(__half2(raw));
  *high = codes;
  *low = __nv_cvt_float2_to_fp8x2(make_float2((a - taken.x) / kLowPart, (b - taken.y) / kLowPart),
                                  __NV_SATFINITE, __NV_E4M3);
}

// The 16 lanes of half a warp split 128 columns of a row, lane i columns 8 i .. 8 i + 7. REQUIRES:
// all lanes of the warp. Infinities and NaNs make the scale NaN.
__device__ __forceinline__ SplitEight SplitRow(const uint4& x, float* scale) {
  constexpr uint32_t kMagnitudes = 0x7fff7fffu;
  uint32_t most = __vmaxu2(__vmaxu2(x.x & kMagnitudes, x.y & kMagnitudes),
                           __vmaxu2(x.z & kMagnitudes, x.w & kMagnitudes));
#pragma unroll
  for (int lane = 8; lane > 0; lane /= 2) {
    most = __vmaxu2(most, __shfl_xor_sync(0xffffffffu, most, lane));
  }
  const uint32_t exponent = max(max(most >> 16, most & 0xffffu) >> 7, 8u);
  const float up = __uint_as_float((261 - exponent) << 23);  // 2^7 at exponent 127
  *scale = __uint_as_float(exponent == 255 ? 0x7fc00000u : (exponent - 7) << 23);
  const uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
  uint32_t high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) SplitTwo(pairs[i], up, &high[i], &low[i]);
  return {{high[0] | high[1] << 16, high[2] | high[3] << 16},
          {low[0] | low[1] << 16, low[2] | low[3] << 16}};
}

}  // namespace hadal::cuda
