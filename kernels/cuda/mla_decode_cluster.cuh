#pragma once

#include "kernels/cuda/mla_decode_tiles.cuh"

// How the CTAs of a cluster merge what each has made of a part of an item's keys: CTA r finishes
// columns width r .. of all rows; all send it their sums of these, and what their weights are for.

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
__host__ __device__ constexpr int SumsBytes(int ctas) {
  return ctas * kRows * (kDecodeLatent / ctas + kPad) * 4;
}
__host__ __device__ constexpr int ExchangeBytes(int ctas) {
  return SumsBytes(ctas) + static_cast<int>(sizeof(Received));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

template <int kCtas>  // of the cluster, a power of two
struct Exchange {
  static constexpr int kWidth = kDecodeLatent / kCtas;
  static constexpr int kPitch = kWidth + kPad;
  float* sums;  // [CTA, row, kPitch]
  Received& received;

  __device__ __forceinline__ explicit Exchange(char* place)
      : sums(reinterpret_cast<float*>(place)),
        received(*reinterpret_cast<Received*>(place + SumsBytes(kCtas))) {}

  static __device__ __forceinline__ int Rank() { return static_cast<int>(blockIdx.x) % kCtas; }
  __device__ __forceinline__ float* At(int from, int row, int column) const {
    return sums + (from * kRows + row) * kPitch + column;
  }

  // By one thread: `parts` CTAs will send.
  __device__ __forceinline__ void Expect(int parts) const {
    const uint32_t full = SharedAddress(&received.full);
    BarrierInit(full, 1);
    BarrierArriveExpect(full, parts * kRows * (kWidth * 4 + static_cast<int>(sizeof(float2))));
  }
  // Two lanes make four columns of two tiles of 8: the even one has those of tile n, the other of
  // n + 1.
  __device__ __forceinline__ void SendSums(const Sums& o) const {
    const int warp = threadIdx.x / 32, row = threadIdx.x % 32 / 4;
    const bool odd = threadIdx.x % 2 != 0;
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      const int column = warp * 64 + (n + odd) * 8 + threadIdx.x % 4 / 2 * 4, to = column / kWidth;
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
  // Four columns of a row, of the first `parts` CTAs, which have keys.
  __device__ __forceinline__ float4 Merged(int row, int column, int parts) const {
    float m = -INFINITY, l = 0;
    float2 ml[kCtas];
    float4 o[kCtas], sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < kCtas; ++j) {
      ml[j] = j < parts ? received.ml[j][row] : make_float2(-INFINITY, 0);
      o[j] = j < parts ? *reinterpret_cast<const float4*>(At(j, row, column)) : sum;
      m = fmaxf(m, ml[j].x);
    }
#pragma unroll
    for (int j = 0; j < kCtas; ++j) {
      const float w = ExpDiff(ml[j].x, m);
      l += w * ml[j].y;
      sum = make_float4(sum.x + w * o[j].x, sum.y + w * o[j].y, sum.z + w * o[j].z,
                        sum.w + w * o[j].w);
    }
    const float inverse = 1.0f / l;
    return make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse);
  }
  __device__ __forceinline__ void Merge(const DecodeArgs& a, const DecodeItem& item,
                                        int parts) const {
    constexpr int kFours = kWidth / 4;
    BarrierWait(SharedAddress(&received.full), 0);
    for (int i = threadIdx.x; i < kRows * kFours; i += kThreads) {
      const int row = i / kFours, at = i % kFours;
      StoreMerged(a, item, row, Rank() * kFours + at, Merged(row, 4 * at, parts));
    }
  }
};

#endif

}  // namespace hadal::cuda::decode16
