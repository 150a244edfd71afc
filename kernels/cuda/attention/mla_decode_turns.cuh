#pragma once

#include "kernels/cuda/attention/mla_decode_wgmma.cuh"
#include "kernels/cuda/attention/mla_flash.cuh"
#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/hopper.cuh"
#include "kernels/cuda/device/shared.cuh"

// What the two warpgroups of the decode kernel of 64 pairs do with two tiles. Each makes the scores
// and weights of its own; both add the values of the first, then of the second to their half of the
// output's columns:
//
//   warpgroup 0, first tile                   warpgroup 1, second tile
//   scores                                    scores
//   maximum, weights                      ->  output += values of the first tile
//   output += values of the first tile        maximum, weights
//   output += values of the second tile   <-  output += values of the second tile
//
// So products of one run while the other makes weights, and the place of the first tile is filled
// again while the second is in use. The last tile of a segment may be alone.

namespace hadal::cuda::decode64 {

#if HADAL_SM90A

// Row of the piece: the first of the thread's two, the other is 8 further on.
__device__ __forceinline__ int RowOfThread() {
  return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
}

// What a thread of a warpgroup holds in registers.
struct Work {
  flash::RowState state;
  float s[8][4];           // scores of its tile's 64 keys, then weights
  uint32_t weights[4][4];  // the same as an operand
  float o[2][16][4];       // 256 columns of the output
};

// Keeps registers in place around products with values.
__device__ __forceinline__ void HoldOutput(Work& w) {
  KeepAll(w.weights);
  KeepAll(w.o[0]);
  KeepAll(w.o[1]);
}

// Starts s = queries times the keys of the warpgroup's tile, as its parts arrive.
template <int kGroup>
__device__ __forceinline__ void StartScores(Shared& shared, const Phases& phases, Work& w) {
  const uint32_t queries = SharedAddress(shared.queries);
  const uint32_t keys = SharedAddress(shared.tiles[kGroup]);
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    WaitPart(kGroup, part, shared, phases);
    BeginProducts();
#pragma unroll
    for (int k = 0; k < PartBoxes(part) * 4; ++k) {
      const uint32_t at = BoxOfPart(kGroup, part, k / 4) * kBoxBytes + k % 4 * 32;
      WgmmaRows64(w.s, TileDescriptor(queries + at), TileDescriptor(keys + at), part + k > 0);
    }
    CommitProducts();
  }
}

// Starts o += weights times the warpgroup's columns of the values of its own tile,
template <int kGroup>
__device__ __forceinline__ void StartOwnValues(Shared& shared, Work& w) {
  const uint32_t values = SharedAddress(shared.tiles[kGroup]) + kGroup * 4 * kBoxBytes;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const uint32_t at = values + k * 2048;
    WgmmaColumns128(w.o[0], w.weights[k], ColumnsDescriptor(at, kBoxBytes));
    WgmmaColumns128(w.o[1], w.weights[k], ColumnsDescriptor(at + 2 * kBoxBytes, kBoxBytes));
  }
  CommitProducts();
}
// or of the other's.
template <int kGroup>
__device__ __forceinline__ void StartOtherValues(Shared& shared, Work& w) {
  const uint32_t tile = SharedAddress(shared.tiles[kGroup ^ 1]);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const uint64_t p = TileDescriptor(tile + kRotaryBox * kBoxBytes + k * 32);
    const uint32_t at = tile + kGroup * 4 * kBoxBytes + k * 2048;
    WgmmaRowsColumns128(w.o[0], p, ColumnsDescriptor(at, kBoxBytes));
    WgmmaRowsColumns128(w.o[1], p, ColumnsDescriptor(at + 2 * kBoxBytes, kBoxBytes));
  }
  CommitProducts();
}

// Weights to the other warpgroup, where the tile's rotary columns were.
template <int kGroup>
__device__ __forceinline__ void ShareWeights(const Work& w, Shared& shared) {
  const int row = RowOfThread();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    char* at =
        shared.tiles[kGroup] + kRotaryBox * kBoxBytes + (row + 8 * r) * 128 + threadIdx.x % 4 * 4;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      *reinterpret_cast<uint32_t*>(at + (n ^ row % 8) * 16) = w.weights[n / 2][n % 2 * 2 + r];
    }
  }
  FenceAsync();
}

// The scores are there. Raises m to the largest of each of the thread's rows, times the scale.
__device__ __forceinline__ void FinishScores(const DecodeArgs& a, const DecodeSegment& s, int tile,
                                             Work& w, float (&m)[2]) {
  KeepAll(w.s);
  if ((tile + 1) * kBlockSize > s.item.row.start_pos + 1) {
    flash::Mask(tile * kBlockSize, w.state, w.s);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float x = w.s[0][2 * r];
#pragma unroll
    for (int n = 0; n < 8; ++n) x = fmaxf(x, fmaxf(w.s[n][2 * r], w.s[n][2 * r + 1]));
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
    m[r] = fmaxf(m[r], x * a.scale_log2);
  }
}

// One value of each of the thread's rows for the other warpgroup; and what that has left.
__device__ __forceinline__ void Leave(const float (&x)[2], float* rows) {
  if (threadIdx.x % 4 != 0) return;
  rows[RowOfThread()] = x[0];
  rows[RowOfThread() + 8] = x[1];
}
__device__ __forceinline__ void Fetch(const float* rows, float (&x)[2]) {
  x[0] = rows[RowOfThread()];
  x[1] = rows[RowOfThread() + 8];
}

// The maximum is m now: the sum so far is, and the output has to be, multiplied by alpha.
__device__ __forceinline__ void MoveMaxima(const float (&m)[2], Work& w, float (&alpha)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float base = m[r] == -INFINITY ? 0.0f : m[r];
    alpha[r] = Exp2(w.state.m[r] - base);
    w.state.m[r] = m[r];
    w.state.l[r] *= alpha[r];
  }
}

// From the scores for the maximum; to registers, and to the other warpgroup.
template <int kGroup>
__device__ __forceinline__ void MakeWeights(const DecodeArgs& a, Shared& shared, Work& w) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float base = w.state.m[r] == -INFINITY ? 0.0f : w.state.m[r];
    float l[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        w.s[n][2 * r + i] = Exp2(fmaf(w.s[n][2 * r + i], a.scale_log2, -base));
        l[i] += w.s[n][2 * r + i];
      }
    }
    w.state.l[r] += l[0] + l[1];
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) flash::PackWeights(w.s, k, w.weights[k]);
  ShareWeights<kGroup>(w, shared);
  Leave(w.state.m, shared.maxima[kGroup]);
  Send(kGroup, shared);
}

// Most tiles leave the maxima of all of a warp's rows where they were.
__device__ __forceinline__ void Rescale(const float (&alpha)[2], Work& w) {
  if (!__any_sync(0xffffffffu, alpha[0] != 1 || alpha[1] != 1)) return;
  flash::Rescale(alpha, w.o[0]);
  flash::Rescale(alpha, w.o[1]);
}

// Starts adding the values of the warpgroup's own tile,
template <int kGroup>
__device__ __forceinline__ void AddOwn(const float (&alpha)[2], Shared& shared, Work& w) {
  Rescale(alpha, w);
  HoldOutput(w);
  BeginProducts();
  StartOwnValues<kGroup>(shared, w);
}
// or of the other's as soon as their weights are there. Sets m to the maximum these are for.
template <int kGroup>
__device__ __forceinline__ void AddOther(Shared& shared, const Phases& phases, float (&m)[2],
                                         Work& w) {
  float alpha[2];
  Await(kGroup ^ 1, shared, phases);
  Fetch(shared.maxima[kGroup ^ 1], m);
  MoveMaxima(m, w, alpha);
  Rescale(alpha, w);
  HoldOutput(w);
  BeginProducts();
  StartOtherValues<kGroup>(shared, w);
}
__device__ __forceinline__ void FinishAdding(Work& w) {
  AwaitProducts<0>();
  HoldOutput(w);
}

__device__ __forceinline__ void FirstTurn(const DecodeArgs& a, const DecodeSegment& s, int tile,
                                          bool both, Shared& shared, const Phases& phases,
                                          Work& w) {
  float m[2] = {w.state.m[0], w.state.m[1]}, alpha[2];
  StartScores<0>(shared, phases, w);
  AwaitProducts<0>();
  FinishScores(a, s, tile, w, m);
  MoveMaxima(m, w, alpha);
  MakeWeights<0>(a, shared, w);
  AddOwn<0>(alpha, shared, w);
  FinishAdding(w);
  ReleasePart(0, 0, shared);
  if (!both) return;
  AddOther<0>(shared, phases, m, w);
  FinishAdding(w);
  ReleasePart(1, 1, shared);
}

__device__ __forceinline__ void SecondTurn(const DecodeArgs& a, const DecodeSegment& s, int tile,
                                           Shared& shared, const Phases& phases, Work& w) {
  float m[2], alpha[2];
  StartScores<1>(shared, phases, w);
  AddOther<1>(shared, phases, m, w);
  AwaitProducts<1>();
  FinishScores(a, s, tile, w, m);
  MoveMaxima(m, w, alpha);
  MakeWeights<1>(a, shared, w);
  FinishAdding(w);
  ReleasePart(0, 1, shared);
  AddOwn<1>(alpha, shared, w);
  FinishAdding(w);
  ReleasePart(1, 0, shared);
}
// Without a second tile.
__device__ __forceinline__ void SecondTurn(Shared& shared, const Phases& phases, Work& w) {
  float m[2];
  AddOther<1>(shared, phases, m, w);
  FinishAdding(w);
  ReleasePart(0, 1, shared);
}

#endif

}  // namespace hadal::cuda::decode64
