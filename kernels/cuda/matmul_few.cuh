#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/few_wgmma.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/mma.cuh"

// A product of few rows streams its weights: time is what memory takes to deliver them, and what
// passes between one kernel's end and the next one's. One thread of a block has the copy engine bring
// tiles of weights, before the kernel waits for the one in front of it, and of activations; two
// warpgroups multiply. Weights are the left operand, so that 8 tokens fill a tile. The blocks of a
// cluster share outputs and divide the inputs; each hands its sums to the blocks that own the outputs,
// which add them in a fixed order.
namespace hadal::cuda {

struct FewArgs {
  CUtensorMap w;  // [groups, 2, 8, k]: 16 rows per group; of silu_mul 8 of either half
  CUtensorMap x;  // [m, matrices, k]
  const float* scale;  // as in CudaPackedWeight
  int64_t scale_n, k_blocks;
  int scale_rows, k_lead;
  void* y;
  int64_t y_stride, y_matrix_stride;
  int64_t n;          // outputs; of silu_mul half the rows of w
  bool silu_mul;
  bool float_out;
  int m;
  int token_blocks;
  int steps;        // of all inputs
  int split_steps;  // of one block
  int stages;       // of them that fit into shared memory at once
  int ahead;        // steps behind those to fetch into L2 beforehand
};

// A step is 16 KB of weights: 128 rows of 128 bytes, or 64 rows of 256, a warpgroup each 128.
template <typename W, int kTokens_, int kRows_, int kStages_, int kBlocksPerSm_>
struct FewTile {
  static constexpr bool kF8 = sizeof(W) == 1;
  static constexpr int kConsumers = 256;
  static constexpr int kThreads = kConsumers + 32;
  static constexpr int kTokens = kTokens_;
  static constexpr int kTokenTiles = kTokens / 8;
  static constexpr int kRows = kRows_;
  static constexpr int kSlabs = kRows / 16;   // rows of a warp
  static constexpr int kDepth = 128 / kRows;  // warpgroups that divide a step's inputs
  static constexpr int kStages = kStages_;
  static constexpr int kBlocksPerSm = kBlocksPerSm_;
  static constexpr int kUnit = 128 / sizeof(W);  // inputs of 128 bytes of weights
  static constexpr int kStep = kUnit * kDepth;
  static constexpr int kUnitBytes = kRows * 128;
  static constexpr int kWeightBytes = kUnitBytes * kDepth;
  static constexpr int kXBox = kTokens * 128;  // 64 inputs
  static constexpr int kXBoxes = kStep / 64;
  static constexpr int kStageBytes = kWeightBytes + kXBoxes * kXBox;
  static constexpr int kSumBytes = 512 * kTokens;  // all that the others hand to this block
  static constexpr int kBarrierBytes = 16 * kStages;
  static constexpr int kMaxShared = kStages * kStageBytes + kSumBytes + kBarrierBytes;
};

__device__ __forceinline__ void CopyBox(uint32_t to, const CUtensorMap* map, int column, int group,
                                        uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3, %3, %4}], [%5];" ::"r"(to),
      "l"(map), "r"(column), "r"(0), "r"(group), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void FetchBox(const CUtensorMap* map, int column, int group) {
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global [%0, {%1, %2, %2, %3}];" ::"l"(map),
               "r"(column), "r"(0), "r"(group)
               : "memory");
}
__device__ __forceinline__ void CopyTokens(uint32_t to, const CUtensorMap* map, int column,
                                           int matrix, int token, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3, %4}], [%5];" ::"r"(to),
      "l"(map), "r"(column), "r"(matrix), "r"(token), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void ArriveCluster() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ __forceinline__ void AwaitCluster() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
// To the shared memory of block `rank` of the cluster, at the address that is `at` in this one's.
__device__ __forceinline__ void StoreRemote16(uint32_t at, int rank, const float (&v)[4]) {
  asm volatile(
      "{\n.reg .u32 to;\nmapa.shared::cluster.u32 to, %0, %1;\n"
      "st.shared::cluster.v4.f32 [to], {%2, %3, %4, %5};\n}\n" ::"r"(at),
      "r"(rank), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
      : "memory");
}
__device__ __forceinline__ uint32_t LoadShared2(uint32_t at) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at));
  return v;
}
// Keeps the compiler from moving uses of registers across what products do to them meanwhile.
__device__ __forceinline__ void Keep(float& v) { asm volatile("" : "+f"(v)::"memory"); }
__device__ __forceinline__ void Keep(uint32_t& v) { asm volatile("" : "+r"(v)::"memory"); }
template <int kTiles, typename T>
__device__ __forceinline__ void KeepAll(T (&v)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int c = 0; c < 4; ++c) Keep(v[i][c]);
  }
}

// What a block works on, and where its shared memory is.
template <typename Tile>
struct FewBlock {
  uint32_t base, sums, full, empty;
  int64_t matrix;
  int token0, first, count;

  __device__ FewBlock(const FewArgs& a, uint32_t shared)
      : base(shared), sums(shared + a.stages * Tile::kStageBytes),
        full(sums + Tile::kSumBytes), empty(full + 8 * Tile::kStages),
        matrix(blockIdx.z / a.token_blocks),
        token0(static_cast<int>(blockIdx.z) % a.token_blocks * Tile::kTokens),
        first(static_cast<int>(blockIdx.x) * a.split_steps),
        count(min(a.split_steps, a.steps - first)) {}
};

// The thread that has operands brought.
template <typename Tile>
struct FewProducer {
  const FewArgs& a;
  const FewBlock<Tile>& block;
  int group;

  __device__ FewProducer(const FewArgs& args, const FewBlock<Tile>& b)
      : a(args), block(b) {
    const int64_t rows = a.silu_mul ? 0 : block.matrix * a.n / 16;
    group = static_cast<int>(rows) + static_cast<int>(blockIdx.y) * Tile::kSlabs;
  }

  __device__ void Prepare() const {
    for (int s = 0; s < Tile::kStages; ++s) {
      BarrierInit(block.full + 8 * s, 1);
      BarrierInit(block.empty + 8 * s, Tile::kConsumers / 32);
    }
    FenceBarrierInit();
    FenceForProducts();
    PrefetchMap(&a.x);
  }
  __device__ int Column(int step) const { return (block.first + step) * Tile::kStep - a.k_lead; }
  __device__ void Weights(int step, int stage) const {
    const uint32_t barrier = block.full + 8 * stage;
    ArriveExpecting(barrier, Tile::kStageBytes);
#pragma unroll
    for (int d = 0; d < Tile::kDepth; ++d) {
      CopyBox(block.base + stage * Tile::kStageBytes + d * Tile::kUnitBytes, &a.w,
              Column(step) + d * Tile::kUnit, group, barrier);
    }
  }
  __device__ void Fetch(int step) const {
#pragma unroll
    for (int d = 0; d < Tile::kDepth; ++d) FetchBox(&a.w, Column(step) + d * Tile::kUnit, group);
  }
  __device__ void X(int step, int stage) const {
#pragma unroll
    for (int b = 0; b < Tile::kXBoxes; ++b) {
      CopyTokens(block.base + stage * Tile::kStageBytes + Tile::kWeightBytes + b * Tile::kXBox,
                 &a.x, Column(step) + 64 * b, static_cast<int>(block.matrix), block.token0,
                 block.full + 8 * stage);
    }
  }
  __device__ void Rest() const {
    for (int s = 0; s < min(block.count, Tile::kStages); ++s) X(s, s);
    int stage = 0, parity = 0;
    for (int s = Tile::kStages; s < block.count; ++s) {
      AwaitBarrier(block.empty + 8 * stage, parity);
      Weights(s, stage);
      X(s, stage);
      if (++stage == Tile::kStages) stage = 0, parity ^= 1;
    }
  }
};

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
    if (threadIdx.x % 32 == 0) Arrive(block.empty + 8 * operands.stage);
#pragma unroll
    for (int j = 0; j < Tile::kTokenTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[j][c] += part[j][c] * (c < 2 ? low : high);
    }
    operands.Next();
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
  const uint32_t at = block.sums + ((source * share + slab % share) * Tile::kTokenTiles * 32 +
                                    threadIdx.x % 32) * 16;
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
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();

  const int slab = warp % Tile::kSlabs;
  FewSums<Tile> sums = {};
  if (warp < Tile::kConsumers / 32) {
    if constexpr (Tile::kF8) {
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
