#pragma once

#include <type_traits>

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/experts/moe_few.cuh"

namespace hadal::cuda {

// How hidden values of few tokens, [row, stride] bf16 as w13 stores them, come to w2's products.

// With FP8 weights more warps and shorter steps, of which as many blocks fit an SM beside w13's:
// one token 24 to 23 us for both kernels, four 62 to 58 (H200); bf16 2 % slower that way.
template <typename W>
inline constexpr int kW2Warps = kIsF8<W> ? 12 : 8;
template <typename W>
inline constexpr int kW2Threads = 32 * kW2Warps<W>;
template <typename W>
using W2Step = FewStep<W, kIsF8<W> ? 1 : 2>;

// Behind a slot's weights, pieces of hidden values. FP8: [block][token], of a lane columns 4 lane
// .. 4 lane + 3. bf16: [block][part], of token lane / 4 its 16 bytes beside the lane's weights.
template <typename W, int kTokens>
inline constexpr int kW2Pieces = (kIsF8<W> ? kTokens : kFewParts) * W2Step<W>::kBlocks;
template <typename W, int kTokens>
inline constexpr int kW2PieceBytes = kIsF8<W> ? 256 : kTokens * 64;
template <typename W, int kTokens>
inline constexpr int kW2SlotBytes =
    kW2Pieces<W, kTokens>* kW2PieceBytes<W, kTokens> + W2Step<W>::kSlotBytes;

// Where hidden values of a part lie.
template <typename W, int kTokens>
struct W2Hidden {
  static constexpr int kCount = kIsF8<W> ? kTokens : 1;

  const bf16* row[kCount];  // of tokens, or of the lane's; null: it did not choose the expert
  int first;                // the lane's first column of step 0
  int stride;

  __device__ __forceinline__ W2Hidden(const FewExpertsArgs& a, const FewJobs& jobs, int part) {
    const int lane = threadIdx.x % 32;
    const bf16* base = part < 0 ? a.shared_hidden : a.hidden;
    stride = part < 0 ? a.shared_stride : a.hidden_stride;
    first = kIsF8<W> ? lane * 4 - (part < 0 ? a.shared2 : a.w2).k_lead : lane % 4 * 8;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int t = kIsF8<W> ? i : lane / 4;
      const int r = t >= a.tokens ? -1 : part < 0 ? t : jobs.row[part][t];
      row[i] = r < 0 ? nullptr : base + r * stride;
    }
  }
  W2Hidden() = default;

  // Zeros where there is nothing; `readable` is any address.
  __device__ __forceinline__ void Copy(uint32_t to, int step, const void* readable) const {
    constexpr int kColumns = kIsF8<W> ? 128 : 32;  // of a piece
    const int lane = threadIdx.x % 32;
    if (!kIsF8<W> && lane >= 4 * kTokens) return;
    to += lane * (kIsF8<W> ? 8 : 16);
#pragma unroll
    for (int i = 0; i < kW2Pieces<W, kTokens>; ++i) {
      const int column = step * W2Step<W>::kColumns + first + i / kCount * kColumns;
      const bf16* from = row[i % kCount];
      const bool inside = from != nullptr && column >= 0 && column < stride;
      const void* at = inside ? from + column : readable;
      if constexpr (kIsF8<W>) {
        CopyAsync8(to + i * kW2PieceBytes<W, kTokens>, at, inside);
      } else {
        CopyAsync16(to + i * kW2PieceBytes<W, kTokens>, at, inside);
      }
    }
  }
};

// What a lane needs of a step's hidden values; of tokens that are not there it takes others'.
template <typename W, int kTokens>
struct W2Raw {
  using Piece = std::conditional_t<kIsF8<W>, uint2, uint4>;
  Piece at[kW2Pieces<W, kTokens>];

  __device__ __forceinline__ explicit W2Raw(const char* slot) {
    const int own = threadIdx.x % (kIsF8<W> ? 32 : 4 * kTokens);
#pragma unroll
    for (int i = 0; i < kW2Pieces<W, kTokens>; ++i) {
      const char* piece = slot + W2Step<W>::kSlotBytes + i * kW2PieceBytes<W, kTokens>;
      at[i] = reinterpret_cast<const Piece*>(piece)[own];
    }
  }
};

// FP8's hidden values in f16 to `halves`, [block][token][128]: quarter warps that read 16 bytes of
// two tokens meet no bank twice. Multiplies each block's factors by what takes the scales back.
template <int kTokens>
__device__ __forceinline__ void StoreHalves(W2Raw<fp8, kTokens>& raw, int tokens, char* halves,
                                            float2 (&factor)[W2Step<fp8>::kBlocks]) {
  const int lane = threadIdx.x % 32, q = lane % 4;
#pragma unroll
  for (int i = 0; i < W2Step<fp8>::kBlocks * kTokens; ++i) {
    const int t = i % kTokens;
    if (t >= tokens) continue;
    const float down = Halves(raw.at[i]);
    *reinterpret_cast<uint2*>(halves + i * 256 + (lane / 2 ^ t % 2) * 16 + lane % 2 * 8) =
        raw.at[i];
    if (t == 2 * q) factor[i / kTokens].x *= down;
    if (t == 2 * q + 1) factor[i / kTokens].y *= down;
  }
}
// Of the lane's token.
template <int kTokens>
__device__ __forceinline__ void HalvesAt(const char* halves, int tokens, int block,
                                         FewTokens<fp8>& to) {
  const int token = min(static_cast<int>(threadIdx.x) % 32 / 4, tokens - 1), q = threadIdx.x % 4;
  const uint32_t at = SharedAddress(halves) + (block * kTokens + token) * 256;
#pragma unroll
  for (int part = 0; part < kFewParts; ++part) {
    const int chunk = part * 8 + q * 2 + token % 2;
    HalfTokens(LoadShared16(at + chunk * 16), LoadShared16(at + (chunk ^ 1) * 16), to[part]);
  }
}

}  // namespace hadal::cuda
