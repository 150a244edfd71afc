#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace hadal::cuda {

using bf16 = __nv_bfloat16;
using fp8 = __nv_fp8_e4m3;

// Activations in memory are float or bf16, in registers float; rounding is to nearest even.
__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float ToFloat(fp8 x) { return static_cast<float>(x); }
// e4m3, unscaled.
__device__ __forceinline__ float ToFloat(uint8_t code) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}

template <typename T>
__device__ __forceinline__ T FromFloat(float x) {
  return static_cast<T>(x);
}
template <>
__device__ __forceinline__ bf16 FromFloat<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float Silu(float x) { return x / (1.0f + __expf(-x)); }

// silu(gate) * up within a few units in the last place, in six instructions: a division that is
// right for all operands branches, and the values of a thread then wait for each other; exp and
// reciprocal that are right for denormals scale their operands.
__device__ __forceinline__ float SiluMul(float gate, float up) {
  float sigmoid;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(sigmoid) : "f"(1.0f + Exp2(gate * -1.4426950408889634f)));
  return gate * sigmoid * up;
}

}  // namespace hadal::cuda
