#pragma once

#include <cuda_bf16.h>

#include "common/rounding.h"
#include "kernels/cuda/attention/mla.cuh"
#include "kernels/cuda/device/cuda_context.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/vector_io.cuh"
#include "kernels/cuda/device/warp.cuh"
#include "kernels/op_params.h"

// MlaInput of the released models' bf16, by warps: a kernel of its own, or some blocks of another
// one.
namespace hadal::cuda {

// A warp makes a token's latent row or turns 128 vectors of its queries. All loads of what an
// earlier kernel wrote are on their way before the first is used.
constexpr int kInputWarps = 8;     // of a block
constexpr int kQueryVectors = 4;   // of a lane
constexpr int kLatentVectors = 2;  // of a lane

__device__ __forceinline__ void RotateVector(float (&x)[kVector], const float (&cos_sin)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; i += 2) {
    const float a = x[i], b = x[i + 1], c = cos_sin[i], s = cos_sin[i + 1];
    x[i] = a * c - b * s;
    x[i + 1] = a * s + b * c;
  }
}

// Vectors of a head divide a warp's lanes, so that a lane finds the same angles in every vector.
__device__ inline void TurnQueries(const MlaInputParams& p, int64_t token, int first,
                                   const float* angles) {
  const int of_head = p.rope_dim / kVector, lane = threadIdx.x % 32;
  float cos_sin[kVector], x[kQueryVectors][kVector];
  LoadVector(angles + lane % of_head * kVector, cos_sin);
  auto* q = static_cast<__nv_bfloat16*>(p.q_rope) + token * p.q_rope_stride;
  const auto at = [&](int i) {
    const int vector = first + i * 32 + lane;
    return q + vector / of_head * p.q_rope_head_stride + vector % of_head * kVector;
  };
  const auto inside = [&](int i) { return first + i * 32 + lane < p.heads * of_head; };
  WaitForPrevious();
#pragma unroll
  for (int i = 0; i < kQueryVectors; ++i) {
    if (inside(i)) LoadVector(at(i), x[i]);
  }
#pragma unroll
  for (int i = 0; i < kQueryVectors; ++i) {
    if (!inside(i)) continue;
    RotateVector(x[i], cos_sin);
    StoreVector(at(i), x[i]);
  }
}

__device__ inline void StoreLatentVectors(const MlaInputParams& p, int64_t token,
                                          const float* angles) {
  const int lane = threadIdx.x % 32, of_latent = p.latent_rank / kVector;
  const bool turns = lane < p.rope_dim / kVector;
  float x[kLatentVectors][kVector] = {}, weight[kLatentVectors][kVector] = {};
  float rope[kVector] = {}, cos_sin[kVector] = {};
  const auto inside = [&](int i) { return i * 32 + lane < of_latent; };
  const auto* in = static_cast<const __nv_bfloat16*>(p.kv_a) + token * p.kv_a_stride;
  auto* out =
      static_cast<__nv_bfloat16*>(p.cache) + p.cache_rows[token] * (p.latent_rank + p.rope_dim);
#pragma unroll
  for (int i = 0; i < kLatentVectors; ++i) {
    if (inside(i)) LoadVector(p.weight + (i * 32 + lane) * kVector, weight[i]);
  }
  if (turns) LoadVector(angles + lane * kVector, cos_sin);
  WaitForPrevious();
#pragma unroll
  for (int i = 0; i < kLatentVectors; ++i) {
    if (inside(i)) LoadVector(in + (i * 32 + lane) * kVector, x[i]);
  }
  if (turns) LoadVector(in + p.latent_rank + lane * kVector, rope);
  float square = 0;
#pragma unroll
  for (int i = 0; i < kLatentVectors; ++i) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) square += x[i][j] * x[i][j];
  }
  const float factor = 1.0f / sqrtf(WarpSum(square) / static_cast<float>(p.latent_rank) + p.eps);
#pragma unroll
  for (int i = 0; i < kLatentVectors; ++i) {
    if (!inside(i)) continue;
#pragma unroll
    for (int j = 0; j < kVector; ++j) x[i][j] *= factor * weight[i][j];
    StoreVector(out + (i * 32 + lane) * kVector, x[i]);
  }
  if (!turns) return;
  RotateVector(rope, cos_sin);
  StoreVector(out + p.latent_rank + lane * kVector, rope);
}

// Parts of a token: part 0 is the latent row.
inline int InputParts(const MlaInputParams& p) {
  return 1 + static_cast<int>(CeilDiv(int64_t{p.heads} * p.rope_dim / kVector, kQueryVectors * 32));
}
inline int InputBlocks(const MlaInputParams& p) {
  return static_cast<int>(CeilDiv(int64_t{p.tokens} * InputParts(p), kInputWarps));
}

// A warp per token and part.
__device__ inline void InputBlock(const MlaInputParams& p, int block, int parts) {
  const int item = block * kInputWarps + static_cast<int>(threadIdx.x) / 32;
  const int token = item / parts, part = item % parts;
  const int position = token < p.tokens ? p.positions[token] : -1;
  if (position < 0) {
    WaitForPrevious();
    return;
  }
  const float* angles = p.cos_sin + int64_t{position} * p.rope_dim;
  if (part == 0) return StoreLatentVectors(p, token, angles);
  TurnQueries(p, token, (part - 1) * kQueryVectors * 32, angles);
}

inline bool InputVectorsFit(const MlaInputParams& p, const CudaContext& context) {
  constexpr int kSize = sizeof(__nv_bfloat16);
  const int64_t row = p.latent_rank + p.rope_dim;
  return context.act == DType::kBF16 && p.cache_dtype == DType::kBF16 &&
         p.latent_rank % kVector == 0 && p.latent_rank <= kLatentVectors * 32 * kVector &&
         p.rope_dim % kVector == 0 && 32 * kVector % p.rope_dim == 0 &&
         VectorRows(p.q_rope, p.q_rope_stride, kSize) &&
         VectorRows(p.q_rope, p.q_rope_head_stride, kSize) &&
         VectorRows(p.kv_a, p.kv_a_stride, kSize) && VectorRows(p.cache, row, kSize) &&
         VectorRows(p.weight, p.latent_rank, sizeof(float)) &&
         VectorRows(p.cos_sin, p.rope_dim, sizeof(float));
}

}  // namespace hadal::cuda
