#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/read_once.cuh"
#include "kernels/cuda/products/matmul_held.h"

// What the warps of a product that holds its weights (matmul_held.cuh) load.
namespace hadal::cuda {

constexpr int kHeldTokens = 8;
constexpr int kHeldUnit = 64;  // inputs whose weights a lane loads 16 bytes at a time

struct HeldArgs {
  const void* w;
  const float* scale;  // as in CudaPackedWeight
  int64_t stride, scale_n, k_blocks;
  int n, k, k_lead, scale_rows;
  const __nv_bfloat16* x;
  int64_t x_stride, x_matrix_stride;
  void* y;
  int64_t y_stride, y_matrix_stride;
  bool float_out;
  int m;
  int log_splits;  // of the warps that divide the inputs: a power of two
  int tiles;       // blocks of a matrix
  int ahead;       // a block brings the weights of the one so much behind to L2; 0: none
};

// A warp holds 16 rows of kUnits * 64 inputs, 16 registers a unit. FP8 becomes bf16 before the
// wait, or stays codes, of half the size, until it is multiplied by.
template <typename W, HeldPlan kPlan>
struct HeldTile {
  using Weight = W;
  static constexpr bool kF8 = sizeof(W) == 1;
  static constexpr bool kCodes = kPlan.codes, kWidened = kF8 && !kCodes;
  static constexpr int kUnits = kPlan.units, kWarps = kPlan.warps, kThreads = 32 * kWarps;
  static constexpr int kRegisters = HeldRegisters(kPlan);
  static constexpr int kSlice = kUnits * kHeldUnit;
  static constexpr int kLoads = kF8 ? 1 : 2;        // of a row and unit
  static constexpr int kScales = (kUnits + 1) / 2;  // blocks of 128 inputs
  static constexpr int kChunks = kSlice / 8;        // 16 bytes of a token each
  // Rows of tokens in shared memory: the lanes of a load meet in no bank.
  static constexpr int kPitch = kSlice * 2 + (kF8 ? 16 : 64);
  // Shared memory of a warp.
  static constexpr int WarpBytes(int m) { return m * kPitch; }
};

// Loads that stay in front of a wait: those of the read-only path the compiler moves behind it. 16
// bytes that are read once, zeros where there are none.
__device__ __forceinline__ uint4 LoadOnce16(const void* from, bool inside, uint64_t policy) {
  uint4 v;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
      "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
      "@p ld.global.L1::no_allocate.L2::cache_hint.L2::128B.v4.b32 {%0, %1, %2, %3}, [%4], %5;\n}\n"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(from), "l"(policy), "r"(static_cast<int>(inside))
      : "memory");
  return v;
}

__device__ __forceinline__ float LoadFloat(const float* from) {
  float v;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(from) : "memory");
  return v;
}

// What a warp works on: 16 rows from `row` on, the inputs from `first` on.
template <typename Tile>
struct HeldWarp {
  int matrix, tile, split, slab, first, row;

  __device__ HeldWarp(const HeldArgs& a, int block) {
    const int warp = threadIdx.x / 32;
    matrix = block / a.tiles;
    tile = block % a.tiles;
    split = warp & ((1 << a.log_splits) - 1);
    slab = warp >> a.log_splits;
    first = split * Tile::kSlice - a.k_lead;
    row = (tile * (Tile::kWarps >> a.log_splits) + slab) * 16;
  }
};

// Left operands of this lane. Of row g (half 0) and g + 8 (half 1) it holds 16 inputs of each unit;
// which 16 is free as long as the tokens follow: 8 t .. and 32 + 8 t .. of bf16, 16 t .. of FP8.
template <typename Tile>
struct HeldWeights {
  uint4 raw[Tile::kUnits][2][Tile::kLoads];
  uint32_t widened[Tile::kWidened ? Tile::kUnits : 1][4][4];
  float scale[Tile::kScales][2];

  __device__ __forceinline__ void Load(const HeldArgs& a, const HeldWarp<Tile>& warp) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int first = warp.first + t * (16 / static_cast<int>(sizeof(typename Tile::Weight)));
    const int rows[2] = {min(warp.row + g, a.n - 1), min(warp.row + g + 8, a.n - 1)};
    const int64_t before = int64_t{warp.matrix} * a.n;
    const auto* base = static_cast<const typename Tile::Weight*>(a.w) + first;
    const auto* low = base + (before + rows[0]) * a.stride;
    const auto* high = base + (before + rows[1]) * a.stride;
    const uint64_t policy = ReadOnce();
#pragma unroll
    for (int u = 0; u < Tile::kUnits; ++u) {
#pragma unroll
      for (int j = 0; j < Tile::kLoads; ++j) {
        const int at = u * kHeldUnit + j * 32;
        const bool inside = static_cast<unsigned>(first + at) < static_cast<unsigned>(a.k);
        raw[u][0][j] = LoadOnce16(low + at, inside, policy);
        raw[u][1][j] = LoadOnce16(high + at, inside, policy);
      }
    }
    if (Tile::kF8) LoadScales(a, warp, rows);
  }

  // Operands of the four products of a unit.
  __device__ __forceinline__ void Arrange(int u, uint32_t (&to)[4][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t words[8];
      Widen(raw[u][half], words);
#pragma unroll
      for (int i = 0; i < 8; ++i) to[i / 2][i % 2 * 2 + half] = words[i];
    }
  }

  // A function of all that is widened: who stores it has it made before.
  __device__ __forceinline__ uint32_t WidenAll() {
    uint32_t fold = 0;
#pragma unroll
    for (int u = 0; u < Tile::kUnits; ++u) {
      Arrange(u, widened[u]);
#pragma unroll
      for (const auto& operand : widened[u])
        fold ^= operand[0] ^ operand[1] ^ operand[2] ^ operand[3];
    }
    return fold;
  }

 private:
  __device__ __forceinline__ void LoadScales(const HeldArgs& a, const HeldWarp<Tile>& warp,
                                             const int (&rows)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = warp.matrix * a.scale_n + rows[half] / a.scale_rows;
#pragma unroll
      for (int i = 0; i < Tile::kScales; ++i) {
        const int64_t block = min(int64_t{warp.split} * Tile::kSlice / 128 + i, a.k_blocks - 1);
        scale[i][half] = LoadFloat(a.scale + row * a.k_blocks + block);
      }
    }
  }
  static __device__ __forceinline__ void Widen(const uint4 (&from)[1], uint32_t (&to)[8]) {
    DecodeF8(from[0].x, &to[0], &to[1]);
    DecodeF8(from[0].y, &to[2], &to[3]);
    DecodeF8(from[0].z, &to[4], &to[5]);
    DecodeF8(from[0].w, &to[6], &to[7]);
  }
  static __device__ __forceinline__ void Widen(const uint4 (&from)[2], uint32_t (&to)[8]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      to[4 * j] = from[j].x, to[4 * j + 1] = from[j].y;
      to[4 * j + 2] = from[j].z, to[4 * j + 3] = from[j].w;
    }
  }
};

// The weights of another block to L2: it may start too late to wait for them.
template <typename Tile>
__device__ __forceinline__ void FetchAhead(const HeldArgs& a, int tile) {
  constexpr int kLine = 128 / sizeof(typename Tile::Weight);
  const int rows = 16 * Tile::kWarps >> a.log_splits, lines = (a.k + kLine - 1) / kLine;
  for (int i = threadIdx.x; i < rows * lines; i += Tile::kThreads) {
    const int64_t row = min(tile * rows + i / lines, a.n - 1);
    const auto* from = static_cast<const typename Tile::Weight*>(a.w) + row * a.stride;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from + i % lines * kLine) : "memory");
  }
}

// Starts copies of the warp's slice of all tokens to shared memory at `to`.
template <typename Tile>
__device__ __forceinline__ void FetchTokens(const HeldArgs& a, const HeldWarp<Tile>& warp,
                                            uint32_t to) {
  constexpr int kRounds = (Tile::kChunks + 31) / 32;     // of a token
  constexpr int kAtOnce = 32 * kRounds / Tile::kChunks;  // tokens
  const int lane = threadIdx.x % 32, token0 = lane / Tile::kChunks;
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const int chunk = lane % Tile::kChunks + 32 * r, column = warp.first + 8 * chunk;
    const bool inside = static_cast<unsigned>(column) < static_cast<unsigned>(a.k);
    const auto* x =
        a.x + warp.matrix * a.x_matrix_stride + token0 * a.x_stride + (inside ? column : 0);
    const uint32_t first = to + token0 * Tile::kPitch + chunk * 16;
#pragma unroll
    for (int i = 0; i < kHeldTokens; i += kAtOnce) {
      if (token0 + i >= a.m) break;
      CopyAsync16(first + i * Tile::kPitch, x + i * a.x_stride, inside);
    }
  }
}

}  // namespace hadal::cuda
