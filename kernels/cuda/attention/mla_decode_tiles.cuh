#pragma once

#include "kernels/cuda/attention/mla_decode_mma.cuh"
#include "kernels/cuda/attention/mla_flash.cuh"
#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/shared.cuh"

// What a CTA does with tiles of 64 keys and 16 (query, head) pairs. Each of 8 warps makes the
// weights of 8 keys, with half of the queries' columns in registers, then 64 of the 512 columns of
// the output; weights change hands in shared memory.

namespace hadal::cuda::decode16 {

using flash::RowState;

// What a thread holds of the output: columns 8 n + 2 (lane % 4) and the next of its warp's 8
// kTiles.
template <int kTiles>
using SumsOf = float[kTiles][4];
using Sums = SumsOf<8>;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// Two warps. A barrier whose number the compiler does not know would take all 16 of a CTA.
__device__ __forceinline__ void SyncPair(int pair) {
  static_assert(kWarps == 8);
  switch (pair) {
    case 0:
      asm volatile("bar.sync 1, 64;" ::: "memory");
      break;
    case 1:
      asm volatile("bar.sync 2, 64;" ::: "memory");
      break;
    case 2:
      asm volatile("bar.sync 3, 64;" ::: "memory");
      break;
    default:
      asm volatile("bar.sync 4, 64;" ::: "memory");
      break;
  }
}

// Rows of the tile that hold no key of the item would bring NaNs into the products.
__device__ __forceinline__ void ClearRows(char* stage, int valid) {
  for (int i = threadIdx.x; i < (kBlockSize - valid) * (kDim / 8); i += kThreads) {
    char* row = stage + (valid + i / (kDim / 8)) * kPitch;
    *reinterpret_cast<uint4*>(row + i % (kDim / 8) * 16) = make_uint4(0, 0, 0, 0);
  }
  FenceAsync();
}

// Two warps take half of the columns each and 16 keys, then change halves: sums of 8 keys each.
__device__ __forceinline__ void Scores(const char* stage, const uint32_t (&q)[kSteps][4],
                                       Shared& shared, float (&s)[4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = warp % 2;
  const int key = warp / 2 * 16 + lane / 16 * 8 + lane % 8;
  const uint32_t from = SharedAddress(stage + key * kPitch + half * kHalfBytes + lane / 8 % 2 * 16);
  float part[2][2][4] = {};  // of 8 keys, every other step
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    uint32_t b[4];
    LoadMatrices(from + k * 32, b);
    MmaBf16(part[0][k % 2], q[k], b[0], b[1]);
    MmaBf16(part[1][k % 2], q[k], b[2], b[3]);
  }
  float given[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float low = part[0][0][i] + part[0][1][i], high = part[1][0][i] + part[1][1][i];
    s[i] = half == 0 ? low : high;
    given[i] = half == 0 ? high : low;
  }
  shared.scores[warp ^ 1][lane] = make_float4(given[0], given[1], given[2], given[3]);
  SyncPair(warp / 2);
  const float4 got = shared.scores[warp][lane];
  s[0] += got.x, s[1] += got.y, s[2] += got.z, s[3] += got.w;
}

// Turns scores into weights in shared memory; scales the sums so far.
template <int kTiles>
__device__ __forceinline__ void Softmax(const DecodeArgs& a, int first_key, float (&s)[4],
                                        RowState& state, Shared& shared, SumsOf<kTiles>& o) {
  const int warp = threadIdx.x / 32, row = threadIdx.x % 32 / 4;
  const int column = warp * 8 + threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool seen = first_key + column + i % 2 < state.limit[i / 2];
    s[i] = seen ? s[i] * a.scale_log2 : -INFINITY;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float m = fmaxf(s[2 * r], s[2 * r + 1]);
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
    if (threadIdx.x % 4 == 0) shared.of_warp[warp][row + 8 * r] = m;
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float m = state.m[r];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) m = fmaxf(m, shared.of_warp[w][row + 8 * r]);
    const float base = m == -INFINITY ? 0.0f : m;
    const float alpha = Exp2(state.m[r] - base);
    const float p0 = Exp2(s[2 * r] - base), p1 = Exp2(s[2 * r + 1] - base);
    state.m[r] = m;
    state.l[r] = state.l[r] * alpha + p0 + p1;
    *reinterpret_cast<uint32_t*>(shared.weights + (row + 8 * r) * kWeightPitch + column * 2) =
        PackBf16(p0, p1);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) o[n][2 * r] *= alpha, o[n][2 * r + 1] *= alpha;
  }
  __syncthreads();
}

// o += weights times the warp's columns of the tile, of which the first warp's begin at `column`.
template <int kTiles>
__device__ __forceinline__ void AddValues(const char* stage, const char* weights, int column,
                                          SumsOf<kTiles>& o) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t a_from = SharedAddress(weights + lane % 16 * kWeightPitch + lane / 16 * 16);
  const uint32_t b_from =
      SharedAddress(stage + lane % 16 * kPitch + (column + warp * kTiles * 8) * 2 + lane / 16 * 16);
#pragma unroll
  for (int k = 0; k < kBlockSize / 16; ++k) {
    uint32_t p[4];
    LoadMatrices(a_from + k * 32, p);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t b[4];
      LoadMatricesTransposed(b_from + k * 16 * kPitch + n * 16, b);
      MmaBf16(o[n], p, b[0], b[1]);
      MmaBf16(o[n + 1], p, b[2], b[3]);
    }
  }
}

__device__ __forceinline__ RowState StartRows(const DecodeArgs& a, const DecodeItem& item) {
  RowState state;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    state.m[r] = -INFINITY;
    state.l[r] = 0;
    state.limit[r] = KeysOfPair(a, item, item.first + threadIdx.x % 32 / 4 + 8 * r);
  }
  return state;
}

// Adds tiles tile .. end of the item, the stage of the last one stays empty. `cleared`: the rows
// behind the last key have been already. The output's columns from `column` on, of all warps.
template <bool kManyItems, int kTiles>
__device__ __forceinline__ void AddTiles(const DecodeArgs& a, const DecodeItem& item, int tile,
                                         int end, bool cleared, const uint32_t (&q)[kSteps][4],
                                         Shared& shared, Ring& ring, Producer<kManyItems>& producer,
                                         RowState& state, int column, SumsOf<kTiles>& o) {
  for (; tile < end; ++tile, ring.Advance()) {
    char* stage = shared.stages[ring.stage];
    PollBarrier(SharedAddress(&shared.full[ring.stage]), ring.parity);
    const int valid = item.keys - tile * kBlockSize;
    if (valid < kBlockSize && !cleared) {
      ClearRows(stage, valid);
      __syncthreads();
    }
    float scores[4];
    Scores(stage, q, shared, scores);
    Softmax(a, tile * kBlockSize, scores, state, shared, o);
    AddValues(stage, shared.weights, column, o);
    __syncthreads();
    if (tile + 1 < end) producer.template Issue<true, true>(a, shared, ring.stage);
  }
}

// The warps' shares of the sums of weights, for all threads.
__device__ __forceinline__ void ShareSums(const RowState& state, Shared& shared) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float l = state.l[r];
    l += __shfl_xor_sync(0xffffffffu, l, 1);
    l += __shfl_xor_sync(0xffffffffu, l, 2);
    const int row = threadIdx.x % 32 / 4 + 8 * r;
    if (threadIdx.x % 4 == 0) shared.of_warp[threadIdx.x / 32][row] = l;
  }
  __syncthreads();
}
__device__ __forceinline__ float SumOfRow(const Shared& shared, int row) {
  float l = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) l += shared.of_warp[w][row];
  return l;
}

__device__ __forceinline__ void WriteSegment(const DecodeArgs& a, const DecodeSegment& s,
                                             const RowState& state, Shared& shared, const Sums& o) {
  const int warp = threadIdx.x / 32, column = warp * 64 + threadIdx.x % 4 * 2;
  ShareSums(state, shared);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = threadIdx.x % 32 / 4 + 8 * r;
    StoreRow(a, s, row, column, o, r, state.m[r], SumOfRow(shared, row),
             warp == 0 && threadIdx.x % 4 == 0);
  }
}

#endif

}  // namespace hadal::cuda::decode16
