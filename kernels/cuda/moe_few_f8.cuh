#pragma once

#include <cuda.h>

#include "kernels/cuda/few_wgmma.cuh"
#include "kernels/cuda/moe_boxes.cuh"
#include "kernels/cuda/moe_few.cuh"
#include "kernels/cuda/split_f8.cuh"

namespace hadal::cuda {

// Experts of at most 8 tokens with FP8 weights. Converting weights costs more than waiting for
// them: here warpgroups multiply tiles of 64 weight rows and 128 columns, one block of scales, as
// the copy engine brought them, by the tokens split in two (split_f8.cuh): columns 0 .. 7 the high
// parts, 8 .. 15 the low ones. One more warp keeps a ring of tiles filled.

inline constexpr int kF8Consumers = 256;  // two warpgroups
inline constexpr int kF8Threads = kF8Consumers + 32;
inline constexpr int kF8TileBytes = 64 * 128;
inline constexpr int kF8SplitBytes = 16 * 128;  // of the tokens beside a tile

struct FewF8Args {
  CUtensorMap w13, shared13;  // PairMap(), or of items of 16 rows PairBlockMap()
  CUtensorMap w2, shared2;    // RowMap()
  FewExpertsArgs few;
};

template <int kStages>
struct F8Barriers {
  uint64_t full[kStages], empty[kStages];

  // By one thread.
  __device__ void Init(int consumer_warps) {
    for (int s = 0; s < kStages; ++s) {
      BarrierInit(SharedAddress(&full[s]), 1);
      BarrierInit(SharedAddress(&empty[s]), consumer_warps);
    }
    FenceBarrierInit();
  }
};

// A position in the ring; parity of the stage's current round.
template <int kStages>
struct F8Stage {
  int index = 0, parity = 0;
  __device__ __forceinline__ void Next(int by = 1) {
    index += by;
    if (index >= kStages) index -= kStages, parity ^= 1;
  }
};

__device__ __forceinline__ void StoreShared8(uint32_t at, uint2 v) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(v.x), "r"(v.y) : "memory");
}

// Where lane i of half a warp puts its columns of token t.
__device__ __forceinline__ void StoreSplit(uint32_t tile, int t, int lane, const SplitEight& v) {
  const uint32_t at = tile + t * 128 + ((lane / 2 ^ t) << 4) + lane % 2 * 8;
  StoreShared8(at, v.high);
  StoreShared8(at + 8 * 128, v.low);
}

// A tile may hold kFold blocks of 128 columns of 64 / kFold weight rows, one below the other, with
// the tokens of all of them beside it: of the products each warp keeps those of its own block.
template <int kFold>
__device__ __forceinline__ int FoldOf() {  // of this warp
  return static_cast<int>(threadIdx.x) % 128 / 32 * kFold / 4;
}
template <int kHalf, int kTiles>
__device__ __forceinline__ void KeepHalf(float (&d)[kTiles][4], bool upper) {
#pragma unroll
  for (int i = 0; i < 4 * kHalf; ++i) {
    float& to = d[i / 4][i % 4];
    to = upper ? d[kHalf + i / 4][i % 4] : to;
  }
}
// Rows g and g + 8 of the warp's 16, tokens 2 q and 2 q + 1, without scales.
template <int kFold>
__device__ __forceinline__ void MultiplyTile(uint32_t tile, uint32_t tokens, float (&out)[4]) {
  const uint64_t a = TileDescriptor(tile), b = TileDescriptor(tokens);
  float d[2 * kFold][4];
  BeginProducts();
#pragma unroll
  for (int k = 0; k < 4; ++k) FewProductF8(d, a + 2 * k, b + 2 * k, k > 0);
  CommitProducts();
  AwaitProducts<0>();
  KeepAll(d);
  if constexpr (kFold == 4) KeepHalf<4>(d, FoldOf<kFold>() & 2);
  if constexpr (kFold >= 2) KeepHalf<2>(d, FoldOf<kFold>() & 1);
#pragma unroll
  for (int c = 0; c < 4; ++c) out[c] = d[0][c] + kLowPart * d[1][c];
}

// sum += products times the scales of the two rows and of the two tokens.
__device__ __forceinline__ void AddTile(const float (&part)[4], float low, float high, float2 x,
                                        float (&sum)[4]) {
  sum[0] += low * x.x * part[0];
  sum[1] += low * x.y * part[1];
  sum[2] += high * x.x * part[2];
  sum[3] += high * x.y * part[3];
}

// Barrier 0 is __syncthreads().
__device__ __forceinline__ void SyncThreads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void ArriveThreads(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace hadal::cuda
