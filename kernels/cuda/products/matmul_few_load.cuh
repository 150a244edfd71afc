#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/hopper.cuh"
#include "kernels/cuda/device/read_once.cuh"
#include "kernels/cuda/products/few_wgmma.cuh"

// How the blocks of a product of few rows (matmul_few.cuh) get their operands: tiles by the copy
// engine, and sums from the other blocks of a cluster.
namespace hadal::cuda {

struct FewArgs {
  CUtensorMap w;       // [groups, 2, 8, k]: 16 rows per group; of silu_mul 8 of either half
  CUtensorMap x;       // [m, matrices, k]
  const float* scale;  // as in CudaPackedWeight
  int64_t scale_n, k_blocks;
  int scale_rows, k_lead;
  void* y;
  int64_t y_stride, y_matrix_stride;
  int64_t n;  // outputs; of silu_mul half the rows of w
  bool silu_mul;
  bool float_out;
  bool late;  // the next kernel starts when this one's wait is over, not before
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
  static constexpr bool kOnce = kStages_ == 1;  // a block has one step, and needs fewer registers
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

// Of the weights, read once.
__device__ __forceinline__ void CopyBox(uint32_t to, const CUtensorMap* map, int column, int group,
                                        uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(column), "r"(0), "r"(group), "r"(barrier), "l"(ReadOnce())
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
__device__ __forceinline__ uint32_t LoadShared2(uint32_t at) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at));
  return v;
}
// What a block works on, and where its shared memory is.
template <typename Tile>
struct FewBlock {
  uint32_t base, sums, full, empty;
  int64_t matrix;
  int token0, first, count;

  __device__ FewBlock(const FewArgs& a, uint32_t shared)
      : base(shared),
        sums(shared + a.stages * Tile::kStageBytes),
        full(sums + Tile::kSumBytes),
        empty(full + 8 * Tile::kStages),
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

  __device__ FewProducer(const FewArgs& args, const FewBlock<Tile>& b) : a(args), block(b) {
    const int64_t rows = a.silu_mul ? 0 : block.matrix * a.n / 16;
    group = static_cast<int>(rows) + static_cast<int>(blockIdx.y) * Tile::kSlabs;
  }

  __device__ void Prepare() const {
    for (int s = 0; s < Tile::kStages; ++s) {
      BarrierInit(block.full + 8 * s, 1);
      BarrierInit(block.empty + 8 * s, Tile::kConsumers / 32);
    }
    FenceBarrierInit();
    FenceAsync();
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

}  // namespace hadal::cuda
