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

struct Exchange {
  int ctas;     // of the cluster
  float* sums;  // [CTA, row, width + kPad]
  Received& received;

  __device__ __forceinline__ Exchange(int cluster, char* place)
      : ctas(cluster),
        sums(reinterpret_cast<float*>(place)),
        received(*reinterpret_cast<Received*>(place + SumsBytes(cluster))) {}

  __device__ __forceinline__ int Width() const { return kDecodeLatent / ctas; }
  __device__ __forceinline__ int Rank() const { return static_cast<int>(blockIdx.x) % ctas; }
  __device__ __forceinline__ float* At(int from, int row, int column) const {
    return sums + (from * kRows + row) * (Width() + kPad) + column;
  }

  // By one thread: `parts` CTAs will send.
  __device__ __forceinline__ void Expect(int parts) const {
    const uint32_t full = SharedAddress(&received.full);
    BarrierInit(full, 1);
    BarrierArriveExpect(full, parts * kRows * (Width() * 4 + static_cast<int>(sizeof(float2))));
  }
  // Two lanes make four columns of two tiles of 8: the even one has those of tile n, the other of
  // n + 1.
  __device__ __forceinline__ void SendSums(const Sums& o) const {
    const int warp = threadIdx.x / 32, row = threadIdx.x % 32 / 4;
    const bool odd = threadIdx.x % 2 != 0;
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      const int column = warp * 64 + (n + odd) * 8 + threadIdx.x % 4 / 2 * 4;
      const int to = column / Width();
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
        Send(AddressAt(SharedAddress(At(Rank(), row + 8 * r, column % Width())), to),
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
    if (to >= ctas) return;
    Send(AddressAt(SharedAddress(&received.ml[Rank()][row]), to),
         make_float2(received.maxima[row], SumOfRow(shared, row)),
         AddressAt(SharedAddress(&received.full), to));
  }
  // Of the first `parts` CTAs, which have keys.
  __device__ __forceinline__ void Merge(const DecodeArgs& a, const DecodeItem& item,
                                        int parts) const {
    BarrierWait(SharedAddress(&received.full), 0);
    const int fours = Width() / 4;
    for (int i = threadIdx.x; i < kRows * fours; i += kThreads) {
      const int row = i / fours, at = i % fours;
      float m = -INFINITY, l = 0;
      for (int j = 0; j < parts; ++j) m = fmaxf(m, received.ml[j][row].x);
      float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
      for (int j = 0; j < parts; ++j) {
        const float2 ml = received.ml[j][row];
        const float4 o = *reinterpret_cast<const float4*>(At(j, row, 4 * at));
        const float w = ExpDiff(ml.x, m);
        l += w * ml.y;
        sum = make_float4(sum.x + w * o.x, sum.y + w * o.y, sum.z + w * o.z, sum.w + w * o.w);
      }
      const float inverse = 1.0f / l;
      StoreMerged(a, item, row, Rank() * fours + at,
                  make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse));
    }
  }
};

#endif

}  // namespace hadal::cuda::decode16
