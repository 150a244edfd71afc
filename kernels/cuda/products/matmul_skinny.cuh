#pragma once

#include <cooperative_groups.h>

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/products/skinny_load.cuh"

// A product of few rows streams its weights: time is what memory takes to deliver them. A block
// owns kRows outputs and a range of inputs, and keeps kStages - 1 steps of both operands on their
// way to shared memory. Weights are the left operand of the tensor cores, so that 8 tokens fill a
// tile. The blocks of a cluster share outputs and divide the inputs; they add up in a fixed order.
namespace hadal::cuda {

template <typename Tile>
using SkinnySums = float[2][Tile::kTokenTiles][4];

// Adds half `half` of a step: 32 outputs of this warp, all tokens.
template <typename Tile>
__device__ void SkinnyHalfStep(uint32_t stage, int row0, int half, SkinnySums<Tile>& sums) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  uint4 a[2][2];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    a[r / 2][r % 2] = LoadShared16(stage + Tile::WeightAt(row0 + 8 * r + g, 4 * half + t));
  }
  const uint32_t x = stage + Tile::kWeightBytes;
  if constexpr (!Tile::kF8) {
#pragma unroll
    for (int j = 0; j < Tile::kTokenTiles; ++j) {
      const uint4 b = LoadShared16(x + Tile::XAt(8 * j + g, 4 * half + t));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint4 &low = a[i][0], &high = a[i][1];
        MmaBf16(sums[i][j], low.x, high.x, low.y, high.y, b.x, b.y);
        MmaBf16(sums[i][j], low.z, high.z, low.w, high.w, b.z, b.w);
      }
    }
  } else {
    uint32_t w[2][2][8];  // of 16 outputs: the low and high 8, 16 inputs as pairs
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const uint4& codes = a[r / 2][r % 2];
      uint32_t(&out)[8] = w[r / 2][r % 2];
      DecodeF8(codes.x, &out[0], &out[1]);
      DecodeF8(codes.y, &out[2], &out[3]);
      DecodeF8(codes.z, &out[4], &out[5]);
      DecodeF8(codes.w, &out[6], &out[7]);
    }
#pragma unroll
    for (int j = 0; j < Tile::kTokenTiles; ++j) {
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        const uint4 b = LoadShared16(x + Tile::XAt(8 * j + g, 8 * half + 2 * t + q));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint32_t *low = &w[i][0][4 * q], *high = &w[i][1][4 * q];
          MmaBf16(sums[i][j], low[0], high[0], low[1], high[1], b.x, b.y);
          MmaBf16(sums[i][j], low[2], high[2], low[3], high[3], b.z, b.w);
        }
      }
    }
  }
}

// The scales of a thread's four outputs of a step.
template <typename Tile>
struct SkinnyScales {
  const float* scale;
  int row[4];  // offsets of the outputs' first scales

  __device__ SkinnyScales(const SkinnyArgs& a, int64_t matrix, int row0) : scale(a.scale) {
    const int g = threadIdx.x % 32 / 4;
    const int half = Tile::kRows / 2;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int local = row0 + 8 * r + g;
      int64_t n;
      if (a.silu_mul) {
        n = min(int64_t{blockIdx.y} * half + local % half, a.n - 1) + (local < half ? 0 : a.n);
      } else {
        n = min(int64_t{blockIdx.y} * Tile::kRows + local, a.n - 1);
      }
      row[r] = static_cast<int>((matrix * a.scale_n + n / a.scale_rows) * a.k_blocks);
    }
  }
  __device__ void Load(int step, float (&out)[4]) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) out[r] = __ldg(scale + row[r] + step);
  }
};

template <typename Tile>
__device__ void AddScaled(const SkinnySums<Tile>& part, const float (&scale)[4],
                          SkinnySums<Tile>& sums) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kTokenTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[i][j][c] += part[i][j][c] * scale[2 * i + c / 2];
    }
  }
}

// partial[depth group][token][row] of this block.
template <typename Tile>
__device__ void StorePartial(const SkinnySums<Tile>& sums, int row0, int depth_group,
                             float* partial) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kTokenTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int token = 8 * j + 2 * t + c % 2, row = row0 + 16 * i + g + 8 * (c / 2);
        partial[(depth_group * Tile::kTokens + token) * Tile::kPartialStride + row] = sums[i][j][c];
      }
    }
  }
}

// The blocks that divide the inputs are a cluster; before Hopper there is one, with all inputs.
__device__ __forceinline__ void SyncSplits() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  __syncthreads();
#else
  cooperative_groups::this_cluster().sync();
#endif
}
__device__ __forceinline__ const float* PartialOf(float* partial, [[maybe_unused]] int split) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  return partial;
#else
  return cooperative_groups::this_cluster().map_shared_rank(partial, split);
#endif
}

// An output's sum over the cluster's blocks and their depth groups, always in the same order.
template <typename Tile>
__device__ float Total(float* partial, int token, int row) {
  constexpr int kMaxSplits = 8;
  const int splits = static_cast<int>(gridDim.x);
  float values[kMaxSplits][Tile::kDepthGroups];
#pragma unroll
  for (int s = 0; s < kMaxSplits; ++s) {
    if (s >= splits) continue;
    const float* other = PartialOf(partial, s);
#pragma unroll
    for (int d = 0; d < Tile::kDepthGroups; ++d) {
      values[s][d] = other[(d * Tile::kTokens + token) * Tile::kPartialStride + row];
    }
  }
  float sum = 0;
#pragma unroll
  for (int s = 0; s < kMaxSplits; ++s) {
    if (s >= splits) continue;
#pragma unroll
    for (int d = 0; d < Tile::kDepthGroups; ++d) sum += values[s][d];
  }
  return sum;
}

// Every block of a cluster writes its share of the outputs.
template <typename Tile>
__device__ void WriteOutputs(const SkinnyArgs& a, int64_t matrix, int64_t token_block, int tokens,
                             float* partial) {
  const int block_rows = a.silu_mul ? Tile::kRows / 2 : Tile::kRows;
  const int share = block_rows / gridDim.x;
  const int64_t y0 = matrix * a.y_matrix_stride + token_block * Tile::kTokens * a.y_stride;
  for (int i = threadIdx.x; i < share * tokens; i += Tile::kThreads) {
    const int token = i / share, row = blockIdx.x * share + i % share;
    const int64_t n = int64_t{blockIdx.y} * block_rows + row;
    if (n >= a.n) continue;
    float value = Total<Tile>(partial, token, row);
    if (a.silu_mul) value = Silu(value) * Total<Tile>(partial, token, row + block_rows);
    const int64_t at = y0 + token * a.y_stride + n;
    if (a.float_out) {
      static_cast<float*>(a.y)[at] = value;
    } else {
      static_cast<__nv_bfloat16*>(a.y)[at] = __float2bfloat16_rn(value);
    }
  }
}

// Grid: splits (one cluster), blocks of outputs, matrices * token blocks.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerSm)
    SkinnyKernel(const __grid_constant__ SkinnyArgs a) {
  extern __shared__ __align__(128) char shared[];
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int64_t matrix = blockIdx.z / a.token_blocks, token_block = blockIdx.z % a.token_blocks;
  const int warp = threadIdx.x / 32;
  const int row0 = warp % Tile::kRowGroups * 32, depth_group = warp / Tile::kRowGroups;
  const int first = blockIdx.x * a.split_steps;
  const int count = min(a.split_steps, a.steps - first);
  const SkinnyLoader<Tile> loader(a, matrix, token_block, base);
  constexpr int kAhead = Tile::kStages - 1;
#pragma unroll
  for (int s = 0; s < kAhead; ++s) {
    if (s < count) loader.Weights(first + s, s);
    CommitCopies();
  }
  const SkinnyScales<Tile> scales(a, matrix, row0);
  AllowNext();
  WaitForPrevious();
  loader.FirstX(first, min(count, kAhead));

  SkinnySums<Tile> sums = {};
  int stage = 0;
  for (int s = 0; s < count; ++s) {
    float scale[4];
    if constexpr (Tile::kF8) scales.Load(first + s, scale);  // there by the end of the step
    AwaitCopies<kAhead - 1>();
    __syncthreads();
    if (s + kAhead < count) {
      const int free_stage = stage == 0 ? kAhead : stage - 1;
      loader.Weights(first + s + kAhead, free_stage);
      loader.X(first + s + kAhead, free_stage);
    }
    CommitCopies();
    const uint32_t at = base + stage * Tile::kStageBytes;
    if constexpr (Tile::kF8) {
      SkinnySums<Tile> part = {};
#pragma unroll
      for (int h = depth_group; h < 2; h += Tile::kDepthGroups) {
        SkinnyHalfStep<Tile>(at, row0, h, part);
      }
      AddScaled<Tile>(part, scale, sums);
    } else {
#pragma unroll
      for (int h = depth_group; h < 2; h += Tile::kDepthGroups) {
        SkinnyHalfStep<Tile>(at, row0, h, sums);
      }
    }
    stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
  }
  AwaitCopies<0>();
  __syncthreads();
  float* partial = reinterpret_cast<float*>(shared);
  StorePartial<Tile>(sums, row0, depth_group, partial);
  SyncSplits();
  WriteOutputs<Tile>(a, matrix, token_block, loader.tokens, partial);
  SyncSplits();  // the others may still read this block's sums
}

}  // namespace hadal::cuda
