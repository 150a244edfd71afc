#pragma once

#include <cstring>

#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/products/matmul_held_load.cuh"

// A product of at most 8 tokens whose weights fit into the registers of the card: each lane loads
// its part of them, as operands of products of 16 x 8 x 16, before the kernel waits for the one in
// front of it. What is left to do behind the wait is to fetch the tokens, one round of products and
// a sum over the warps that divide the inputs.
namespace hadal::cuda {

__device__ __forceinline__ void MultiplyOne(float (&sums)[4], const uint32_t (&w)[4], uint32_t x0,
                                            uint32_t x1) {
  MmaBf16(sums, w[0], w[1], w[2], w[3], x0, x1);
}

// The products of the warp's rows with 8 tokens, as MmaBf16() has them. There may be fewer tokens;
// the sums of the others mean nothing.
template <typename Tile>
__device__ __forceinline__ void HeldMultiply(const HeldWeights<Tile>& weights, uint32_t x, int m,
                                             float (&sums)[4]) {
  const int token = min(static_cast<int>(threadIdx.x) % 32 / 4, m - 1), t = threadIdx.x % 4;
  const uint32_t from = x + token * Tile::kPitch + t * (Tile::kF8 ? 32 : 16);
  float part[2][4] = {};
#pragma unroll
  for (int u = 0; u < Tile::kUnits; ++u) {
    uint32_t w[4][4];
    if constexpr (Tile::kWidened) {
      memcpy(w, weights.widened[u], sizeof(w));
    } else {
      weights.Arrange(u, w);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const uint4 b = LoadShared16(from + u * 128 + j * (Tile::kF8 ? 16 : 64));
      MultiplyOne(part[0], w[2 * j], b.x, b.y);
      MultiplyOne(part[1], w[2 * j + 1], b.z, b.w);
    }
    const bool ends = u + 1 == Tile::kUnits || (Tile::kF8 && u % 2 == 1);
    if (!ends) continue;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float sum = part[0][c] + part[1][c];
      sums[c] += Tile::kF8 ? weights.scale[u / 2][c / 2] * sum : sum;
      part[0][c] = part[1][c] = 0;
    }
  }
}

// Where the warps of a block meet: a token's sums of a warp, padded against bank conflicts.
template <int kWarps>
struct HeldSums {
  static constexpr int kPitch = 20;
  float at[kWarps][kHeldTokens * kPitch];
  uint32_t ready[32 * kWarps];

  __device__ __forceinline__ void Put(const float (&sums)[4]) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    float* const of_warp = at[threadIdx.x / 32];
#pragma unroll
    for (int c = 0; c < 4; ++c) of_warp[(2 * t + c % 2) * kPitch + g + c / 2 * 8] = sums[c];
  }
};

// Adds up what the warps of a slab have and stores it, in one order whatever ran first.
template <typename Tile>
__device__ __forceinline__ void AddAndStore(const HeldArgs& a, const HeldWarp<Tile>& warp,
                                            const HeldSums<Tile::kWarps>& shared) {
  constexpr int kLogAll = Tile::kWarps == 16 ? 8 : 7, kPitch = HeldSums<Tile::kWarps>::kPitch;
  const int log_rows = kLogAll - a.log_splits, splits = 1 << a.log_splits;
  const int row0 = warp.tile << log_rows;
  for (int i = threadIdx.x; i < a.m << log_rows; i += Tile::kThreads) {
    const int token = i >> log_rows, row = i & ((1 << log_rows) - 1);
    const int first = row / 16 << a.log_splits;
    if (row0 + row >= a.n) continue;
    float sum = 0;
#pragma unroll
    for (int s = 0; s < Tile::kWarps; ++s) {
      if (s < splits) sum += shared.at[first + s][token * kPitch + row % 16];
    }
    const int64_t at = warp.matrix * a.y_matrix_stride + token * a.y_stride + row0 + row;
    if (a.float_out) {
      static_cast<float*>(a.y)[at] = sum;
    } else {
      static_cast<__nv_bfloat16*>(a.y)[at] = __float2bfloat16_rn(sum);
    }
  }
}

// By blocks 0 .. tiles * matrices - 1. `memory`: WarpBytes() of each warp.
template <typename Tile>
__device__ __forceinline__ void HeldProduct(const HeldArgs& a, int block, char* memory) {
  __shared__ HeldSums<Tile::kWarps> shared;
  const HeldWarp<Tile> warp(a, block);
  const uint32_t x = static_cast<uint32_t>(__cvta_generic_to_shared(memory)) +
                     threadIdx.x / 32 * Tile::WarpBytes(a.m);
  HeldWeights<Tile> w;
  w.Load(a, warp);
  if (Tile::kCodes && a.ahead > 0 && block + a.ahead < a.tiles)
    FetchAhead<Tile>(a, block + a.ahead);
  if constexpr (Tile::kWidened) {
    // The wait is idle; without the store the compiler would widen behind it.
    static_cast<volatile uint32_t*>(shared.ready)[threadIdx.x] = w.WidenAll();
  }
  WaitForPrevious();
  FetchTokens(a, warp, x);
  CommitCopies();
  AwaitCopies<0>();
  __syncwarp();
  float sums[4] = {};
  HeldMultiply<Tile>(w, x, a.m, sums);
  shared.Put(sums);
  __syncthreads();
  AddAndStore(a, warp, shared);
}

template <typename Tile>
__global__ void __maxnreg__(Tile::kRegisters) HeldKernel(const __grid_constant__ HeldArgs a) {
  extern __shared__ __align__(16) char memory[];
  AllowNext();
  HeldProduct<Tile>(a, static_cast<int>(blockIdx.x), memory);
}

}  // namespace hadal::cuda
