#pragma once

#include "kernels/cuda/attention/mla_decode_tiles.cuh"
#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/shared.cuh"

// How the CTAs of a cluster merge what each has made of a part of an item's keys: CTA r finishes
// columns width r .. of all rows; all send it their sums of these, and what their weights are for.
// What goes between CTAs goes at about 15 bytes a clock (H200). So where clusters are few, a group
// of them shares an item's columns: each makes all scores and an equal part of the columns.

namespace hadal::cuda::decode16 {

inline constexpr int kMaxCluster = 16;

// What a CTA receives, but for the sums.
struct Received {
  float2 ml[kMaxCluster][kRows];
  float maxima[kRows];  // this CTA's own
  uint64_t full;
};

// Rows of sums start in different banks: what a quarter of a warp writes at once are two rows.
inline constexpr int kPad = 16;
__host__ __device__ constexpr int SumsBytes(int ctas, int groups) {
  return ctas * kRows * (kDecodeLatent / groups / ctas + kPad) * 4;
}
__host__ __device__ constexpr int ExchangeBytes(int ctas, int groups) {
  return SumsBytes(ctas, groups) + static_cast<int>(sizeof(Received));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// kCtas of a cluster, kGroups clusters of an item: powers of two.
template <int kCtas, int kGroups>
struct Exchange {
  static constexpr int kColumns = kDecodeLatent / kGroups;  // of a cluster
  static constexpr int kWidth = kColumns / kCtas;
  static constexpr int kTiles = kColumns / 8 / kWarps;  // of a warp's sums
  static constexpr int kPitch = kWidth + kPad;
  float* sums;  // [CTA, row, kPitch]
  Received& received;

  __device__ __forceinline__ explicit Exchange(char* place)
      : sums(reinterpret_cast<float*>(place)),
        received(*reinterpret_cast<Received*>(place + SumsBytes(kCtas, kGroups))) {}

  static __device__ __forceinline__ int Rank() { return static_cast<int>(blockIdx.x) % kCtas; }
  static __device__ __forceinline__ int FirstColumn() {
    return static_cast<int>(blockIdx.x) / kCtas % kGroups * kColumns;
  }
  __device__ __forceinline__ float* At(int from, int row, int column) const {
    return sums + (from * kRows + row) * kPitch + column;
  }

  // By one thread: `parts` CTAs will send.
  __device__ __forceinline__ void Expect(int parts) const {
    const uint32_t full = SharedAddress(&received.full);
    BarrierInit(full, 1);
    ArriveExpecting(full, parts * kRows * (kWidth * 4 + static_cast<int>(sizeof(float2))));
  }
  // Two lanes make four columns of two tiles of 8: the even one has those of tile n, the other of
  // n + 1.
  __device__ __forceinline__ void SendSums(const SumsOf<kTiles>& o) const {
    const int warp = threadIdx.x / 32, row = threadIdx.x % 32 / 4;
    const bool odd = threadIdx.x % 2 != 0;
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      const int column = warp * kTiles * 8 + (n + odd) * 8 + threadIdx.x % 4 / 2 * 4,
                to = column / kWidth;
      const uint32_t at = AddressAt(SharedAddress(At(Rank(), row, column % kWidth)), to);
      const uint32_t full = AddressAt(SharedAddress(&received.full), to);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float kept[2], got[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float low = o[n][2 * r + i], high = o[n + 1][2 * r + i];
          kept[i] = odd ? high : low;
          got[i] = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
        }
        Send(at + 8 * r * kPitch * 4,
             odd ? make_float4(got[0], got[1], kept[0], kept[1])
                 : make_float4(kept[0], kept[1], got[0], got[1]),
             full);
      }
    }
  }
  __device__ __forceinline__ void SendWeights(const RowState& state, Shared& shared) const {
    if (threadIdx.x < 32 && threadIdx.x % 4 == 0) {
      received.maxima[threadIdx.x / 4] = state.m[0];
      received.maxima[threadIdx.x / 4 + 8] = state.m[1];
    }
    ShareSums(state, shared);
    const int to = threadIdx.x / kRows, row = threadIdx.x % kRows;
    if (to >= kCtas) return;
    Send(AddressAt(SharedAddress(&received.ml[Rank()][row]), to),
         make_float2(received.maxima[row], SumOfRow(shared, row)),
         AddressAt(SharedAddress(&received.full), to));
  }
  // Of the first `parts` CTAs, which have keys. 16 lanes make a row: each knows one part's weight
  // and adds up kEach columns at a time, or one column of every second part where these are few.
  __device__ __forceinline__ void Merge(const DecodeArgs& a, const DecodeItem& item,
                                        int parts) const {
    const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    PollBarrier(SharedAddress(&received.full), 0);
    const float weight =
        WeightOfPart(lane < parts ? received.ml[lane][row] : make_float2(-INFINITY, 0));
#pragma unroll
    for (int chunk = 0; chunk < kWidth; chunk += kLanes / kShare * kEach) {
      const int column = chunk + lane % (kLanes / kShare) * kEach;
      float sum[kEach] = {};
#pragma unroll
      for (int i = 0; i < kCtas; i += kShare) {
        const int part = i + lane / (kLanes / kShare);
        const float w = __shfl_sync(0xffffffffu, weight, part, kLanes);
        if (part >= parts) continue;
        float o[kEach];
        __builtin_memcpy(o, __builtin_assume_aligned(At(part, row, column), sizeof(o)), sizeof(o));
#pragma unroll
        for (int c = 0; c < kEach; ++c) sum[c] += w * o[c];
      }
      if (kShare == 2) sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], kLanes / 2);
      if (item.first + row >= item.pairs || lane >= kLanes / kShare) continue;
      __nv_bfloat16* out = OutputRow(a, item, row) + FirstColumn() + Rank() * kWidth + column;
      if constexpr (kEach == 4) {
        *reinterpret_cast<uint2*>(out) =
            make_uint2(PackBf16(sum[0], sum[1]), PackBf16(sum[2], sum[3]));
      } else if constexpr (kEach == 2) {
        *reinterpret_cast<uint32_t*>(out) = PackBf16(sum[0], sum[1]);
      } else {
        *out = __float2bfloat16_rn(sum[0]);
      }
    }
  }

 private:
  static constexpr int kLanes = kThreads / kRows;
  static constexpr int kShare = kWidth < kLanes ? kLanes / kWidth : 1;  // lanes of a column
  static constexpr int kEach = kWidth >= 4 * kLanes ? 4 : kWidth > kLanes ? kWidth / kLanes : 1;
  static_assert(kLanes >= kCtas && kShare <= 2);

  // The lane's part in the row's sum, divided by the sum of weights.
  static __device__ __forceinline__ float WeightOfPart(float2 ml) {
    float m = ml.x;
#pragma unroll
    for (int d = kLanes / 2; d > 0; d /= 2) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, d));
    const float weight = m == -INFINITY ? 0.0f : Exp2(ml.x - m);
    float l = weight * ml.y;
#pragma unroll
    for (int d = kLanes / 2; d > 0; d /= 2) l += __shfl_xor_sync(0xffffffffu, l, d);
    return weight / l;
  }
};

#endif

}  // namespace hadal::cuda::decode16
