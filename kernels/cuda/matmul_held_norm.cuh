#pragma once

#include "kernels/cuda/matmul_held_load.cuh"
#include "kernels/cuda/vector_io.cuh"

namespace hadal::cuda {

// Tokens that a norm makes in front of their product: a lane fetches for itself what it adds up.
template <typename Tile>
struct HeldNormLane {
  const HeldNorm& norm;
  int column, k;
  bool inside;
  uint32_t addends, weights;

  __device__ HeldNormLane(const HeldArgs& a, const HeldWarp<Tile>& warp, uint32_t shared)
      : norm(a.norm), column(warp.first + 8 * (static_cast<int>(threadIdx.x) % 32)), k(a.k) {
    inside = column < k;
    if (!inside) column = 0;
    addends = shared + a.m * Tile::kPitch + threadIdx.x % 32 * 16;
    weights = addends + a.m * Tile::kAddends;
  }
  __device__ void FetchWeights() const {
    CopyAsync16(weights, norm.weight + column, inside);
    CopyAsync16(weights + 512, norm.weight + column + 4, inside);
  }
  __device__ void Fetch(int m) const {
#pragma unroll
    for (int i = 0; i < kHeldNormTokens; ++i) {
      if (i >= m) break;
      const uint32_t to = addends + i * Tile::kAddends;
      const float* from = norm.from + i * norm.stride + column;
      CopyAsync16(to, from, inside);
      CopyAsync16(to + 512, from + 4, inside);
      if (norm.delta != nullptr)
        CopyAsync16(to + 1024, norm.delta + int64_t{i} * k + column, inside);
    }
  }
  // Token i times the norm's weights to shared memory, x to the residual where `stores`; returns
  // the lane's sum of squares.
  __device__ float Add(int i, uint32_t to, bool stores) const {
    const uint32_t at = addends + i * Tile::kAddends;
    float x[kVector], square = 0;
    Read(at, x);
    if (norm.delta != nullptr) {
      float delta[kVector];
      Widen(LoadShared16(at + 1024), delta);
#pragma unroll
      for (int c = 0; c < kVector; ++c) x[c] += delta[c];
    }
    if (stores && inside) StoreVector(norm.residual + i * norm.stride + column, x);
    float weight[kVector];
    Read(weights, weight);
    uint32_t words[4];
#pragma unroll
    for (int c = 0; c < kVector; ++c) square += x[c] * x[c];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const __nv_bfloat162 pair =
          __floats2bfloat162_rn(x[2 * c] * weight[2 * c], x[2 * c + 1] * weight[2 * c + 1]);
      words[c] = reinterpret_cast<const uint32_t&>(pair);
    }
    StoreShared16(to + threadIdx.x % 32 * 16, make_uint4(words[0], words[1], words[2], words[3]));
    return square;
  }

 private:
  static __device__ void Read(uint32_t at, float (&x)[kVector]) {
    const uint4 a = LoadShared16(at), b = LoadShared16(at + 512);
    x[0] = __uint_as_float(a.x), x[1] = __uint_as_float(a.y);
    x[2] = __uint_as_float(a.z), x[3] = __uint_as_float(a.w);
    x[4] = __uint_as_float(b.x), x[5] = __uint_as_float(b.y);
    x[6] = __uint_as_float(b.z), x[7] = __uint_as_float(b.w);
  }
  static __device__ void Widen(uint4 v, float (&x)[kVector]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      x[2 * c] = __uint_as_float(words[c] << 16);
      x[2 * c + 1] = __uint_as_float(words[c] & 0xffff0000u);
    }
  }
};

}  // namespace hadal::cuda
