#pragma once

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/shared.cuh"

namespace hadal::cuda {

// Router logits of many tokens on the tensor cores, as exact as FP32: an FP32 weight is the sum of
// three bf16 values, products with bf16 activations are exact, and the tensor cores' sums are added
// up in FP32 every 64 of k. A block makes 64 experts by 64 tokens over a part of k.

inline constexpr int kRouteThreads = 128;
inline constexpr int kRouteTokens = 64;
inline constexpr int kRouteExperts = 64;
inline constexpr int kRouteStep = 64;  // of k
inline constexpr int kRouteSlots = 4;
inline constexpr int kRouteGateBytes =
    kRouteExperts * kRouteStep * 4;  // [warp][window][half][lane] 16
inline constexpr int kRouteSlotBytes = kRouteGateBytes + kRouteTokens * kRouteStep * 2;

struct RouteProductArgs {
  const bf16* x = nullptr;      // [tokens, dim]
  const float* gate = nullptr;  // [experts, dim]
  float* logits = nullptr;      // [splits, tokens, experts]
  int tokens = 0;
  int experts = 0;
  int dim = 0;
  int steps = 0;  // of one split
};

struct SplitPair {
  uint32_t high, middle, low;  // bf16 pairs
};
__device__ __forceinline__ float BitsToFloat(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ uint32_t RoundPair(float a, float b) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&v);
}
// Leaves what rounding took away.
__device__ __forceinline__ uint32_t TakePair(float& a, float& b) {
  const uint32_t pair = RoundPair(a, b);
  a -= BitsToFloat(pair << 16);
  b -= BitsToFloat(pair & 0xffff0000u);
  return pair;
}
__device__ __forceinline__ SplitPair Split(uint32_t a_bits, uint32_t b_bits) {
  float a = BitsToFloat(a_bits), b = BitsToFloat(b_bits);
  SplitPair s;
  s.high = TakePair(a, b);
  s.middle = TakePair(a, b);
  s.low = RoundPair(a, b);
  return s;
}

// The gate's part of a step to a slot: a lane copies what it will multiply itself.
__device__ __forceinline__ void CopyGateStep(const RouteProductArgs& a, uint32_t slot, int step) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int window = 0; window < 4; ++window) {
    const int k = step * kRouteStep + window * 16 + lane % 4 * 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int expert =
          static_cast<int>(blockIdx.y) * kRouteExperts + warp * 16 + h * 8 + lane / 4;
      const bool inside = expert < a.experts && k < a.dim;
      CopyAsync16(slot + ((warp * 4 + window) * 2 + h) * 512 + lane * 16,
                  a.gate + (inside ? int64_t{expert} * a.dim + k : 0), inside);
    }
  }
}

// The tokens' part.
__device__ __forceinline__ void CopyTokenStep(const RouteProductArgs& a, uint32_t slot, int step) {
  const int chunk = threadIdx.x % 8, k = step * kRouteStep + chunk * 8;
#pragma unroll
  for (int i = 0; i < kRouteTokens / 16; ++i) {
    const int row = static_cast<int>(threadIdx.x) / 8 + i * 16;
    const int token = static_cast<int>(blockIdx.x) * kRouteTokens + row;
    const bool inside = token < a.tokens && k < a.dim;
    CopyAsync16(slot + kRouteGateBytes + row * 128 + (chunk ^ row % 4 * 2) * 16,
                a.x + (inside ? int64_t{token} * a.dim + k : 0), inside);
  }
}

__device__ __forceinline__ uint2 LoadShared8(uint32_t at) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
  return v;
}

__device__ __forceinline__ void MultiplyRouteStep(uint32_t slot,
                                                  MmaSums (&sums)[kRouteTokens / 8]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  MmaSums step[kRouteTokens / 8] = {};
#pragma unroll
  for (int window = 0; window < 4; ++window) {
    const uint32_t at = slot + (warp * 4 + window) * 1024 + lane * 16;
    const uint4 g0 = LoadShared16(at), g1 = LoadShared16(at + 512);
    const SplitPair a0 = Split(g0.x, g0.y), a1 = Split(g1.x, g1.y);
    const SplitPair a2 = Split(g0.z, g0.w), a3 = Split(g1.z, g1.w);
    uint2 x[kRouteTokens / 8];
#pragma unroll
    for (int t = 0; t < kRouteTokens / 8; ++t) {
      const int row = t * 8 + lane / 4;
      x[t] =
          LoadShared8(slot + kRouteGateBytes + row * 128 + (window ^ row % 4) * 32 + lane % 4 * 8);
    }
    // Products of one sum are far apart, so that none waits for the one before it.
#pragma unroll
    for (int t = 0; t < kRouteTokens / 8; ++t) {
      MmaBf16(step[t].at, a0.low, a1.low, a2.low, a3.low, x[t].x, x[t].y);
    }
#pragma unroll
    for (int t = 0; t < kRouteTokens / 8; ++t) {
      MmaBf16(step[t].at, a0.middle, a1.middle, a2.middle, a3.middle, x[t].x, x[t].y);
    }
#pragma unroll
    for (int t = 0; t < kRouteTokens / 8; ++t) {
      MmaBf16(step[t].at, a0.high, a1.high, a2.high, a3.high, x[t].x, x[t].y);
    }
  }
#pragma unroll
  for (int t = 0; t < kRouteTokens / 8; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[t].at[i] += step[t].at[i];
  }
}

__device__ __forceinline__ void StoreLogits(const RouteProductArgs& a,
                                            const MmaSums (&sums)[kRouteTokens / 8]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int t = 0; t < kRouteTokens / 8; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = static_cast<int>(blockIdx.x) * kRouteTokens + t * 8 + lane % 4 * 2 + i % 2;
      const int expert =
          static_cast<int>(blockIdx.y) * kRouteExperts + warp * 16 + i / 2 * 8 + lane / 4;
      if (token >= a.tokens || expert >= a.experts) continue;
      a.logits[(int64_t{blockIdx.z} * a.tokens + token) * a.experts + expert] = sums[t].at[i];
    }
  }
}

}  // namespace hadal::cuda
