#pragma once

#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/hopper.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/products/matmul_few_load.cuh"

// A product of few rows streams its weights: time is what memory takes to deliver them, and what
// passes between one kernel's end and the next one's. One thread of a block has the copy engine
// bring tiles of weights, before the kernel waits for the one in front of it, and of activations;
// two warpgroups multiply. Weights are the left operand, so that 8 tokens fill a tile. The blocks
// of a cluster share outputs and divide the inputs; each hands its sums to the blocks that own the
// outputs, which add them in a fixed order.
namespace hadal::cuda {

template <typename Tile>
using FewSums = float[Tile::kTokenTiles][4];

// The scales of a thread's two rows.
template <typename Tile>
struct FewScales {
  const float *low, *high;

  __device__ FewScales(const FewArgs& a, int64_t matrix, int slab) {
    const int g = threadIdx.x % 32 / 4;
    const int64_t n = int64_t{blockIdx.y} * Tile::kRows + 16 * slab;
    int64_t row0 = n + g, row1 = n + g + 8, last = a.n - 1;
    if (a.silu_mul) {
      row0 = min(n / 2 + g, last);
      row1 = row0 + a.n;
      last = 2 * a.n - 1;
    }
    low = a.scale + (matrix * a.scale_n + min(row0, last) / a.scale_rows) * a.k_blocks;
    high = a.scale + (matrix * a.scale_n + min(row1, last) / a.scale_rows) * a.k_blocks;
  }
};

// Where a consumer finds its operands in a stage.
template <typename Tile>
struct FewOperands {
  uint32_t w, x;
  int stage = 0, parity = 0;

  __device__ explicit FewOperands(const FewBlock<Tile>& block) {
    const int group = threadIdx.x / 128, depth = Tile::kDepth == 2 ? group : 0;
    w = block.base + group * 8192;
    x = block.base + Tile::kWeightBytes + depth * (Tile::kXBoxes / Tile::kDepth) * Tile::kXBox;
  }
  __device__ uint32_t offset() const { return stage * Tile::kStageBytes; }
  __device__ void Next() {
    if (++stage == Tile::kStages) stage = 0, parity ^= 1;
  }
};

// All of a block's steps, by a consumer: bf16 weights. Products of a step run while the next one's
// are issued.
template <typename Tile>
__device__ void FewMultiplyBf16(const FewBlock<Tile>& block, FewSums<Tile>& sums) {
  FewOperands<Tile> operands(block);
  int last = 0;
  KeepAll(sums);
  for (int s = 0; s < block.count; ++s) {
    AwaitBarrier(block.full + 8 * operands.stage, operands.parity);
    BeginProducts();
    const uint32_t w = operands.w + operands.offset(), x = operands.x + operands.offset();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      FewProduct(sums, TileDescriptor(w + 32 * i), TileDescriptor(x + 32 * i));
    }
    CommitProducts();
    if (s > 0) {
      AwaitProducts<1>();
      if (threadIdx.x % 32 == 0) Arrive(block.empty + 8 * last);
    }
    last = operands.stage;
    operands.Next();
  }
  AwaitProducts<0>();
  KeepAll(sums);
}

// Adds 128 inputs of this warpgroup's 64 rows.
template <typename Tile>
__device__ __forceinline__ void FewUnitF8(uint32_t w, uint32_t x, FewSums<Tile>& sums) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const uint32_t row = w + (threadIdx.x % 128 / 32 * 16 + g) * 128 + 2 * t;
  uint32_t a[8][4];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t at = row + ((i ^ g) << 4);
    DecodeF8(LoadShared2(at) | LoadShared2(at + 8) << 16, &a[i][0], &a[i][2]);
    DecodeF8(LoadShared2(at + 1024) | LoadShared2(at + 1032) << 16, &a[i][1], &a[i][3]);
  }
  KeepAll(a);
  KeepAll(sums);
  BeginProducts();
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    FewProduct(sums, a[i], TileDescriptor(x + i / 4 * Tile::kXBox + i % 4 * 32));
  }
  CommitProducts();
  AwaitProducts<0>();
  KeepAll(a);
  KeepAll(sums);
}

// The same of FP8 weights, whose scale changes with every step.
template <typename Tile>
__device__ void FewMultiplyF8(const FewArgs& a, const FewBlock<Tile>& block, int slab,
                              FewSums<Tile>& sums) {
  FewOperands<Tile> operands(block);
  const int depth = Tile::kDepth == 2 ? threadIdx.x / 128 : 0;
  const FewScales<Tile> scales(a, block.matrix, slab);
  for (int s = 0; s < block.count; ++s) {
    // A weight may end within a step. The scales are there by the end of the products.
    const int64_t at = min(int64_t{block.first + s} * Tile::kDepth + depth, a.k_blocks - 1);
    const float low = __ldg(scales.low + at), high = __ldg(scales.high + at);
    AwaitBarrier(block.full + 8 * operands.stage, operands.parity);
    FewSums<Tile> part = {};
    FewUnitF8<Tile>(operands.w + operands.offset(), operands.x + operands.offset(), part);
    ArriveForWarp(block.empty + 8 * operands.stage);
#pragma unroll
    for (int j = 0; j < Tile::kTokenTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[j][c] += part[j][c] * (c < 2 ? low : high);
    }
    operands.Next();
  }
}

// The same of a block that has one step at most: products go straight into its sums.
template <typename Tile>
__device__ void FewMultiplyOnceF8(const FewArgs& a, const FewBlock<Tile>& block, int slab,
                                  FewSums<Tile>& sums) {
  if (block.count <= 0) return;
  const FewOperands<Tile> operands(block);
  const int depth = Tile::kDepth == 2 ? threadIdx.x / 128 : 0;
  const FewScales<Tile> scales(a, block.matrix, slab);
  const int64_t at = min(int64_t{block.first} * Tile::kDepth + depth, a.k_blocks - 1);
  const float low = __ldg(scales.low + at), high = __ldg(scales.high + at);
  AwaitBarrier(block.full, 0);
  FewUnitF8<Tile>(operands.w, operands.x, sums);
#pragma unroll
  for (int j = 0; j < Tile::kTokenTiles; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) sums[j][c] *= c < 2 ? low : high;
  }
}

__device__ __forceinline__ void StoreOutput(const FewArgs& a, int64_t at, float value) {
  if (a.float_out) {
    static_cast<float*>(a.y)[at] = value;
  } else {
    static_cast<__nv_bfloat16*>(a.y)[at] = __float2bfloat16_rn(value);
  }
}

// Token tile j of 16 rows, as the lane holds them.
template <typename Tile>
__device__ __forceinline__ void StoreTile(const FewArgs& a, const FewBlock<Tile>& block, int slab,
                                          int j, int lane, const float (&v)[4]) {
  const int token0 = block.token0 + 8 * j + lane % 4 * 2;
  const int64_t row = int64_t{blockIdx.y} * Tile::kRows + 16 * slab;
  const int64_t n = (a.silu_mul ? row / 2 : row) + lane / 4;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    if (token0 + c >= a.m) continue;
    const int64_t at = block.matrix * a.y_matrix_stride + (token0 + c) * a.y_stride + n;
    if (a.silu_mul) {
      if (n < a.n) StoreOutput(a, at, Silu(v[c]) * v[2 + c]);
    } else {
      if (n < a.n) StoreOutput(a, at, v[c]);
      if (n + 8 < a.n) StoreOutput(a, at + 8, v[2 + c]);
    }
  }
}

// sums[source][slab of the owner][token tile][lane] float4 in the owner's shared memory.
template <typename Tile>
__device__ void HandOver(const FewBlock<Tile>& block, int slab, const FewSums<Tile>& sums) {
  const int share = Tile::kSlabs / gridDim.x;
  const int depth = Tile::kDepth == 2 ? threadIdx.x / 128 : 0;
  const int source = blockIdx.x * Tile::kDepth + depth;
  const uint32_t at =
      block.sums +
      ((source * share + slab % share) * Tile::kTokenTiles * 32 + threadIdx.x % 32) * 16;
#pragma unroll
  for (int j = 0; j < Tile::kTokenTiles; ++j) {
    StoreRemote16(at + j * 512, slab / share, sums[j]);
  }
}

template <typename Tile>
__device__ void AddUp(const FewArgs& a, const FewBlock<Tile>& block) {
  const int share = Tile::kSlabs / gridDim.x;
  const int sources = gridDim.x * Tile::kDepth;
  const int items = share * Tile::kTokenTiles * 32;
  for (int i = threadIdx.x; i < items; i += Tile::kThreads) {
    float sum[4] = {};
#pragma unroll 4
    for (int s = 0; s < sources; ++s) {
      const uint4 v = LoadShared16(block.sums + (s * items + i) * 16);
      sum[0] += __uint_as_float(v.x);
      sum[1] += __uint_as_float(v.y);
      sum[2] += __uint_as_float(v.z);
      sum[3] += __uint_as_float(v.w);
    }
    const int tile = i / 32;
    StoreTile<Tile>(a, block, blockIdx.x * share + tile / Tile::kTokenTiles,
                    tile % Tile::kTokenTiles, i % 32, sum);
  }
}

// Grid: splits (one cluster), blocks of outputs, matrices * token blocks.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerSm)
    FewKernel(const __grid_constant__ FewArgs a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char shared[];
  const FewBlock<Tile> block(a, static_cast<uint32_t>(__cvta_generic_to_shared(shared)));
  const FewProducer<Tile> producer(a, block);
  const int warp = threadIdx.x / 32;
  const bool alone = gridDim.x == 1, produces = threadIdx.x == Tile::kConsumers;
  if (produces) {
    producer.Prepare();
    const int held = min(block.count, Tile::kStages);
    for (int s = 0; s < held; ++s) producer.Weights(s, s);
    for (int s = held; s < min(block.count, held + a.ahead); ++s) producer.Fetch(s);
  }
  if (!alone) ArriveCluster();  // this block is there
  __syncthreads();
  // Where a kernel before it lets it start long before its own end, so that weights come in
  // meanwhile, the kernels behind would otherwise crowd onto the multiprocessors that are still
  // free.
  if (!a.late) AllowNext();
  WaitForPrevious();
  if (a.late) AllowNext();

  const int slab = warp % Tile::kSlabs;
  FewSums<Tile> sums = {};
  if (warp < Tile::kConsumers / 32) {
    if constexpr (Tile::kF8 && Tile::kOnce) {
      FewMultiplyOnceF8<Tile>(a, block, slab, sums);
    } else if constexpr (Tile::kF8) {
      FewMultiplyF8<Tile>(a, block, slab, sums);
    } else {
      FewMultiplyBf16<Tile>(block, sums);
    }
  } else if (produces) {
    producer.Rest();
  }
  if (alone && Tile::kDepth == 1) {
    if (warp == Tile::kConsumers / 32) return;
#pragma unroll
    for (int j = 0; j < Tile::kTokenTiles; ++j) {
      StoreTile<Tile>(a, block, slab, j, threadIdx.x % 32, sums[j]);
    }
    return;
  }
  __syncwarp();
  if (!alone) AwaitCluster();
  if (warp < Tile::kConsumers / 32) HandOver<Tile>(block, slab, sums);
  if (alone) {
    __syncthreads();
  } else {
    ArriveCluster();
    AwaitCluster();
  }
  AddUp<Tile>(a, block);
#endif
}

}  // namespace hadal::cuda
