#pragma once

#include "kernels/cuda/attention/mla.cuh"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/warp.cuh"

// Attention of one query and one head by one warp: any dims, any types, sums in FP32.

namespace hadal::cuda {

// Keys and values in the latent cache: both are the same row.
template <typename T>
struct LatentKeys {
  const T* cache;
  const int32_t* block_tables;
  AttentionRow row;
  int latent_rank;
  int rope_dim;

  __device__ const T* Nope(int key) const {
    return cache + CacheRow(block_tables, row, key) * (latent_rank + rope_dim);
  }
  __device__ const T* Rope(int key) const { return Nope(key) + latent_rank; }
  __device__ const T* Value(int key) const { return Nope(key); }
};

struct SoftmaxState {
  float m = -INFINITY;
  float l = 0;
};

template <typename T>
__device__ float WarpDot(const float* q, const T* key, int dim) {
  float sum = 0;
  for (int i = threadIdx.x % 32; i < dim; i += 32) sum += q[i] * ToFloat(key[i]);
  return sum;
}

// Adds the keys begin .. end to the part (o, state). Of the warp, in shared memory: q [nope_dim +
// rope_dim], o [v_dim], weights [32]. The caller orders its own accesses with __syncwarp().
template <typename Keys>
__device__ void WarpAttend(const Keys& keys, int begin, int end, const float* q, int nope_dim,
                           int rope_dim, int v_dim, float scale_log2, float* o, float* weights,
                           SoftmaxState& state) {
  const int lane = threadIdx.x % 32;
  for (int base = begin; base < end; base += 32) {
    const int count = min(32, end - base);
    float score = -INFINITY;
    for (int j = 0; j < count; ++j) {
      const float part = WarpDot(q, keys.Nope(base + j), nope_dim) +
                         WarpDot(q + nope_dim, keys.Rope(base + j), rope_dim);
      const float dot = WarpSum(part);
      if (lane == j) score = dot * scale_log2;
    }
    const float m = fmaxf(state.m, WarpMax(score));
    const float alpha = ExpDiff(state.m, m);
    const float weight = ExpDiff(score, m);
    state.l = state.l * alpha + WarpSum(weight);
    state.m = m;
    weights[lane] = weight;
    __syncwarp();
    for (int d = lane; d < v_dim; d += 32) {
      float sum = o[d] * alpha;
      for (int j = 0; j < count; ++j) sum += weights[j] * ToFloat(keys.Value(base + j)[d]);
      o[d] = sum;
    }
    __syncwarp();
  }
}

}  // namespace hadal::cuda
