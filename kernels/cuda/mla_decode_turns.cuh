#pragma once

#include "kernels/cuda/mla_decode_wgmma.cuh"
#include "kernels/cuda/mla_flash.cuh"

// What the two warpgroups of the decode kernel of 64 pairs do with a tile. Warpgroup 0 needs the
// other for nothing until its first products with values are under way; each keeps its half of the
// output's columns and releases that part of the tile:
//
//   warpgroup 0, keys 0 to 31                 warpgroup 1, keys 32 to 63
//   scores                                    scores
//   maximum                               ->
//   weights, output += own values         <-  maximum of both
//   weights for that maximum              ->  weights, output += own values
//   output += the other's values          <-  output += the other's values

namespace hadal::cuda::decode64 {

#if HADAL_SM90A

// Row of the piece: the first of the thread's two, the other is 8 further on.
__device__ __forceinline__ int RowOfThread() {
  return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
}

// What a thread of a warpgroup holds in registers.
struct Work {
  flash::RowState state;
  float s[4][4];           // scores of its 32 keys, then weights
  uint32_t weights[2][4];  // the same as an operand
  float o[2][16][4];       // 256 columns of the output
};

// Keeps registers in place around products with values.
__device__ __forceinline__ void HoldOutput(Work& w) {
  HoldRegisters(w.weights);
  HoldRegisters(w.o[0]);
  HoldRegisters(w.o[1]);
}

// Starts s = queries times the warpgroup's keys, the columns of one part of the tile.
template <int kGroup, int kPart>
__device__ __forceinline__ void StartScores(Shared& shared, int stage, Work& w) {
  const uint32_t queries = SharedAddress(shared.queries);
  const uint32_t keys = SharedAddress(shared.tiles[stage]) + kGroup * 32 * 128;
#pragma unroll
  for (int k = FirstBox(kPart) * 4; k < FirstBox(kPart + 1) * 4; ++k) {
    const uint32_t at = k / 4 * kBoxBytes + k % 4 * 32;
    WgmmaRows32(w.s, RowsDescriptor(queries + at), RowsDescriptor(keys + at), k > 0);
  }
  WgmmaCommit();
}

// Starts o += weights times the warpgroup's columns of the values of its own keys,
template <int kGroup>
__device__ __forceinline__ void StartOwnValues(Shared& shared, int stage, Work& w) {
  const uint32_t values = SharedAddress(shared.tiles[stage]) + kGroup * 4 * kBoxBytes;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const uint32_t at = values + (kGroup * 2 + k) * 2048;
    WgmmaColumns128(w.o[0], w.weights[k], ColumnsDescriptor(at, kBoxBytes));
    WgmmaColumns128(w.o[1], w.weights[k], ColumnsDescriptor(at + 2 * kBoxBytes, kBoxBytes));
  }
  WgmmaCommit();
}
// or of the other's.
template <int kGroup>
__device__ __forceinline__ void StartOtherValues(Shared& shared, int stage, Work& w) {
  const uint32_t values = SharedAddress(shared.tiles[stage]) + kGroup * 4 * kBoxBytes;
#pragma unroll
  for (int k = 2 - kGroup * 2; k < 4 - kGroup * 2; ++k) {
    const uint64_t p = RowsDescriptor(SharedAddress(shared.weights) + k * 32);
    const uint32_t at = values + k * 2048;
    WgmmaRowsColumns128(w.o[0], p, ColumnsDescriptor(at, kBoxBytes));
    WgmmaRowsColumns128(w.o[1], p, ColumnsDescriptor(at + 2 * kBoxBytes, kBoxBytes));
  }
  WgmmaCommit();
}

// Weights to shared memory for the other warpgroup, each row times `factor`.
template <int kGroup>
__device__ __forceinline__ void ShareWeights(const Work& w, const float (&factor)[2],
                                             Shared& shared) {
  const int row = RowOfThread();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    char* at = shared.weights + (row + 8 * r) * 128 + threadIdx.x % 4 * 4;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      *reinterpret_cast<uint32_t*>(at + ((kGroup * 4 + n) ^ row % 8) * 16) =
          PackBf16(w.s[n][2 * r] * factor[r], w.s[n][2 * r + 1] * factor[r]);
    }
  }
  FenceAsync();
}

// Waits for the scores. Sets m to the largest of each of the thread's rows, times the scale.
template <int kGroup>
__device__ __forceinline__ void FinishScores(const DecodeArgs& a, const DecodeSegment& s, int tile,
                                             Work& w, float (&m)[2]) {
  WgmmaWait<0>();
  HoldRegisters(w.s);
  if ((tile + 1) * kBlockSize > s.item.row.start_pos + 1) {
    flash::Mask(tile * kBlockSize + kGroup * 32, w.state, w.s);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    m[r] = w.s[0][2 * r];
#pragma unroll
    for (int n = 0; n < 4; ++n) m[r] = fmaxf(m[r], fmaxf(w.s[n][2 * r], w.s[n][2 * r + 1]));
    m[r] = fmaxf(m[r], __shfl_xor_sync(0xffffffffu, m[r], 1));
    m[r] = fmaxf(m[r], __shfl_xor_sync(0xffffffffu, m[r], 2)) * a.scale_log2;
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

// The maximum is m now: sums so far, and the output, are to be multiplied by alpha.
__device__ __forceinline__ void MoveMaxima(const float (&m)[2], Work& w, float (&alpha)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float base = m[r] == -INFINITY ? 0.0f : m[r];
    alpha[r] = Exp2(w.state.m[r] - base);
    w.state.m[r] = m[r];
    w.state.l[r] *= alpha[r];
  }
}

__device__ __forceinline__ void MakeWeights(const DecodeArgs& a, Work& w) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float base = w.state.m[r] == -INFINITY ? 0.0f : w.state.m[r];
    float l[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        w.s[n][2 * r + i] = Exp2(fmaf(w.s[n][2 * r + i], a.scale_log2, -base));
        l[i] += w.s[n][2 * r + i];
      }
    }
    w.state.l[r] += l[0] + l[1];
  }
}

__device__ __forceinline__ void PackAll(Work& w) {
#pragma unroll
  for (int k = 0; k < 2; ++k) flash::PackWeights(w.s, k, w.weights[k]);
}

// Most tiles leave the maxima of all of a warp's rows where they were.
__device__ __forceinline__ void Rescale(const float (&alpha)[2], Work& w) {
  if (!__any_sync(0xffffffffu, alpha[0] != 1 || alpha[1] != 1)) return;
  flash::Rescale(alpha, w.o[0]);
  flash::Rescale(alpha, w.o[1]);
}

__device__ __forceinline__ void FirstTurn(const DecodeArgs& a, const DecodeSegment& s, int tile,
                                          Shared& shared, const Ring& ring, Work& w) {
  WaitPart(0, shared, ring);
  WgmmaFence();
  StartScores<0, 0>(shared, ring.stage, w);
  WaitPart(1, shared, ring);
  WgmmaFence();
  StartScores<0, 1>(shared, ring.stage, w);
  float m[2], alpha[2];
  FinishScores<0>(a, s, tile, w, m);
#pragma unroll
  for (int r = 0; r < 2; ++r) m[r] = fmaxf(m[r], w.state.m[r]);
  Leave(m, shared.of_group[0]);
  Send(Signal::kFirstMaximum, shared);
  MoveMaxima(m, w, alpha);
  MakeWeights(a, w);
  PackAll(w);
  Rescale(alpha, w);
  HoldOutput(w);
  WgmmaFence();
  StartOwnValues<0>(shared, ring.stage, w);

  Await(Signal::kSecondMaximum, shared, ring);
  Fetch(shared.of_group[1], m);
  MoveMaxima(m, w, alpha);
  ShareWeights<0>(w, alpha, shared);
  Send(Signal::kFirstWeights, shared);
  WgmmaWait<0>();
  HoldOutput(w);
  Rescale(alpha, w);
  Await(Signal::kSecondWeights, shared, ring);
  HoldOutput(w);
  WgmmaFence();
  StartOtherValues<0>(shared, ring.stage, w);
  WgmmaWait<0>();
  HoldOutput(w);
  ReleasePart(0, shared, ring);
}

__device__ __forceinline__ void SecondTurn(const DecodeArgs& a, const DecodeSegment& s, int tile,
                                           Shared& shared, const Ring& ring, Work& w) {
  float m[2], first[2], alpha[2];
  WaitPart(0, shared, ring);
  WaitPart(1, shared, ring);
  WgmmaFence();
  StartScores<1, 0>(shared, ring.stage, w);
  StartScores<1, 1>(shared, ring.stage, w);
  FinishScores<1>(a, s, tile, w, m);
  Await(Signal::kFirstMaximum, shared, ring);
  Fetch(shared.of_group[0], first);
#pragma unroll
  for (int r = 0; r < 2; ++r) m[r] = fmaxf(m[r], first[r]);
  Leave(m, shared.of_group[1]);
  Send(Signal::kSecondMaximum, shared);
  MoveMaxima(m, w, alpha);
  MakeWeights(a, w);
  constexpr float kAsTheyAre[2] = {1, 1};
  ShareWeights<1>(w, kAsTheyAre, shared);
  Send(Signal::kSecondWeights, shared);
  PackAll(w);
  Rescale(alpha, w);
  HoldOutput(w);
  WgmmaFence();
  StartOwnValues<1>(shared, ring.stage, w);
  Await(Signal::kFirstWeights, shared, ring);
  WgmmaFence();
  StartOtherValues<1>(shared, ring.stage, w);
  WgmmaWait<0>();
  HoldOutput(w);
  ReleasePart(1, shared, ring);
}

#endif

}  // namespace hadal::cuda::decode64
