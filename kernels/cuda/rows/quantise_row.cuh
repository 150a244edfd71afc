#pragma once

#include <cuda_fp8.h>

#include "kernels/cuda/rows/quantise.cuh"

namespace hadal::cuda {

// An item is 128 columns of a row, which share a scale; sixteen lanes round it, 16 bytes each.
inline constexpr int kQuantiseColumns = 128;
inline constexpr int kQuantiseLanes = kQuantiseColumns / 8;
inline constexpr float kQuantiseLeast = 1e-4f;  // of a block's largest

inline int64_t QuantiseBlocks(const QuantiseParams& p) {
  return (p.columns + kQuantiseColumns - 1) / kQuantiseColumns;
}

__device__ __forceinline__ void WidenEight(const uint4& bits, float (&v)[8]) {
  const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&bits);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __bfloat1622float2(pairs[i]);
    v[2 * i] = pair.x;
    v[2 * i + 1] = pair.y;
  }
}

// Two values times `inverse`.
__device__ __forceinline__ __nv_fp8x2_storage_t RoundPair(float2 v, float inverse) {
  return __nv_cvt_float2_to_fp8x2(make_float2(v.x * inverse, v.y * inverse), __NV_SATFINITE,
                                  __NV_E4M3);
}

// Codes and scale of an item from a lane's eight columns. REQUIRES: all lanes of the warp.
__device__ __forceinline__ void StoreQuantised(const QuantiseParams& p, const float (&v)[8],
                                               int64_t r, int64_t b, bool there) {
  float amax = kQuantiseLeast;
#pragma unroll
  for (int i = 0; i < 8; ++i) amax = fmaxf(amax, fabsf(v[i]));
#pragma unroll
  for (int lane = kQuantiseLanes / 2; lane > 0; lane /= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, lane));
  }
  if (!there) return;
  const float inverse = 448.0f / amax;
  uint2 codes;
  auto* pairs = reinterpret_cast<__nv_fp8x2_storage_t*>(&codes);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = RoundPair(make_float2(v[2 * i], v[2 * i + 1]), inverse);
  }
  const int lane = threadIdx.x % kQuantiseLanes;
  const int64_t col = b * kQuantiseColumns + lane * 8;
  if (col < p.columns) *reinterpret_cast<uint2*>(p.codes + r * p.code_stride + col) = codes;
  if (lane == 0) p.scales[r * p.scale_row_stride + b * p.scale_block_stride] = amax / 448.0f;
}

// Items `first` + i * stride of the first `rows` rows, kAtOnce of them, whose loads fly together.
// REQUIRES: all lanes of the warp.
template <int kAtOnce>
__device__ __forceinline__ void QuantiseItems(const QuantiseParams& p, uint32_t blocks,
                                              uint32_t rows, uint32_t first, uint32_t stride) {
  const int64_t lane_col = threadIdx.x % kQuantiseLanes * 8;
  uint4 x[kAtOnce];
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    const uint32_t item = first + i * stride, r = item / blocks;
    const int64_t col = int64_t{item - r * blocks} * kQuantiseColumns + lane_col;
    const int64_t from = r >= rows ? -1 : p.row_of == nullptr ? int64_t{r} : p.row_of[r];
    x[i] = from >= 0 && col < p.columns
               ? *reinterpret_cast<const uint4*>(p.x + from * p.x_stride + col)
               : make_uint4(0, 0, 0, 0);
  }
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    const uint32_t item = first + i * stride, r = item / blocks, b = item - r * blocks;
    float v[8];
    WidenEight(x[i], v);
    StoreQuantised(p, v, r, b, r < rows);
  }
}

}  // namespace hadal::cuda
