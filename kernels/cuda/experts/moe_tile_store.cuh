#pragma once

#include <cuda_fp8.h>

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/experts/moe_tile_memory.cuh"

namespace hadal::cuda {

// kColumns columns of a warp's 16 rows, from sums by way of shared memory, 16 bytes a store.
// pair(j, h): columns 8 j + 2 q and the next of row g + 8 h.
template <int kColumns, typename PairAt>
__device__ __forceinline__ void StoreColumns(uint32_t stage, const TilePart& p, const RowTile& tile,
                                             int row0, int column0, int limit, PairAt pair) {
  constexpr int kRow = 2 * kColumns;     // bytes
  constexpr int kChunks = kColumns / 8;  // of a row
  constexpr int kTurn = kChunks < 8 ? kChunks : 8;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  __syncwarp();
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      StoreShared4(stage + (g + 8 * h) * kRow + (j ^ g % kTurn) * 16 + q * 4, pair(j, h));
    }
  }
  __syncwarp();
#pragma unroll 4
  for (int i = lane; i < 16 * kChunks; i += 32) {
    const int r = i / kChunks, chunk = i % kChunks, column = column0 + chunk * 8;
    if (row0 + r >= tile.count || column >= limit) continue;
    const uint4 v = LoadShared16(stage + r * kRow + (chunk ^ r % kTurn) * 16);
    bf16* row = p.out + static_cast<int64_t>(tile.first + row0 + r) * p.out_stride;
    *reinterpret_cast<uint4*>(row + column) = v;
  }
}

// Sums of a consumer thread as wgmma.cuh lays them out.
template <typename Shape>
using TileSums = float[Shape::kSums];

// silu(gate) * up of four outputs of a row, to the place of `gate`. Their sigmoids share a
// reciprocal: a multiprocessor makes 16 of those or of powers a cycle, which is most of what an
// item takes behind its products. Below -20 the sigmoid stays at 2e-9, so that the product of four
// denominators is finite.
__device__ __forceinline__ void SiluMulFour(float* (&gate)[4], const float (&up)[4]) {
  float below[4], all;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float power = fminf(*gate[i] * -1.4426950408889634f, 28.8f);
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(below[i]) : "f"(power));
    below[i] += 1;
  }
  const float low = below[0] * below[1], high = below[2] * below[3];
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(all) : "f"(low * high));
  const float of_low = all * high, of_high = all * low;
  *gate[0] *= of_low * below[1] * up[0];
  *gate[1] *= of_low * below[0] * up[1];
  *gate[2] *= of_high * below[3] * up[2];
  *gate[3] *= of_high * below[2] * up[3];
}

// Of gate and up sums the outputs, in the place of the first. No value depends on another row,
// which may not be there.
template <typename Shape>
__device__ __forceinline__ void Activate(TileSums<Shape>& d) {
  constexpr int kUp = Shape::kSums / 2;
#pragma unroll
  for (int i = 0; i < kUp; i += 8) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* const gate = d + i + 2 * h;
      float* of_row[4] = {gate, gate + 1, gate + 4, gate + 5};
      SiluMulFour(of_row, {gate[kUp], gate[kUp + 1], gate[kUp + 4], gate[kUp + 5]});
    }
  }
}

template <typename Shape>
__device__ __forceinline__ void StoreTile(const TileMemory<Shape>& memory, const TilePart& p,
                                          const TileItem& item, TileSums<Shape>& d) {
  const int warp = static_cast<int>(threadIdx.x) / 32 - 4, q = threadIdx.x % 4;
  const int row0 = warp % (Shape::kRows / 16) * 16;
  const int first = item.first + warp / (Shape::kRows / 16) * Shape::kGroupOutputs;
  constexpr int kColumns = Shape::kStageColumns;
  if (row0 >= item.tile.count) return;
  if constexpr (Shape::kIsGated) Activate<Shape>(d);
#pragma unroll
  for (int part = 0; part < Shape::kGroupOutputs / kColumns; ++part) {
    const int column0 = first + part * kColumns;
    StoreColumns<kColumns>(memory.stage(warp), p, item.tile, row0, column0,
                           Shape::kIsGated ? p.out_stride : p.n, [&](int j, int h) {
                             const int at = part * kColumns / 2 + 4 * j + 2 * h;
                             if constexpr (!Shape::kIsGated) return PackBf16(d[at], d[at + 1]);
                             const int column = column0 + 8 * j + 2 * q;
                             return PackBf16(column < p.n ? d[at] : 0,
                                             column + 1 < p.n ? d[at + 1] : 0);
                           });
  }
}

// Of 16 rows and 128 outputs of a warp: e4m3 codes and the rows' scales. Four lanes share a row.
template <typename Shape>
__device__ __forceinline__ void StoreRounded(const TileMemory<Shape>& memory, const TilePart& p,
                                             const TileItem& item, TileSums<Shape>& d) {
  const int warp = static_cast<int>(threadIdx.x) / 32 - 4, row0 = warp * 16;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const uint32_t stage = memory.stage(warp);
  if (row0 >= item.tile.count) return;
  Activate<Shape>(d);
  float amax[2] = {1e-4f, 1e-4f};
#pragma unroll
  for (int i = 0; i < Shape::kSums / 2; i += 4) {
    amax[0] = fmaxf(amax[0], fmaxf(fabsf(d[i]), fabsf(d[i + 1])));
    amax[1] = fmaxf(amax[1], fmaxf(fabsf(d[i + 2]), fabsf(d[i + 3])));
  }
  __syncwarp();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    for (int other = 1; other < 4; other *= 2) {
      amax[h] = fmaxf(amax[h], __shfl_xor_sync(0xffffffffu, amax[h], other));
    }
    const int row = row0 + g + 8 * h;
    if (q == 0 && row < item.tile.count) {
      const int64_t block = int64_t{item.tile.first + row} * (p.n / 128) + item.first / 128;
      p.code_scale[block] = amax[h] * (1.0f / 448.0f);
    }
    const float inverse = __fdividef(448.0f, amax[h]);
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const float2 pair = {d[4 * j + 2 * h] * inverse, d[4 * j + 2 * h + 1] * inverse};
      StoreShared2(stage + (g + 8 * h) * 128 + (j / 2 ^ g) * 16 + j % 2 * 8 + q * 2,
                   __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3));
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = lane; i < 16 * 8; i += 32) {
    const int r = i / 8, chunk = i % 8;
    if (row0 + r >= item.tile.count) continue;
    uint8_t* row = p.codes + int64_t{item.tile.first + row0 + r} * p.n + item.first;
    *reinterpret_cast<uint4*>(row + chunk * 16) =
        LoadShared16(stage + r * 128 + (chunk ^ r % 8) * 16);
  }
}

}  // namespace hadal::cuda
