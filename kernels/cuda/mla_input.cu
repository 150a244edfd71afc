#include "common/check.h"
#include "common/rounding.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mla.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vector_io.cuh"

namespace hadal::cuda {
namespace {

constexpr int kThreads = 256;

// (x0 + j x1) * (cos + j sin) of one pair; in registers, so that `out` may be `x`.
template <typename In, typename Out>
__device__ void RotatePair(const In* x, const float* cos_sin, Out* out) {
  const float a = ToFloat(x[0]), b = ToFloat(x[1]);
  const float c = cos_sin[0], s = cos_sin[1];
  out[0] = FromFloat<Out>(a * c - b * s);
  out[1] = FromFloat<Out>(a * s + b * c);
}

__device__ float BlockSum(float x) {
  __shared__ float of_warp[kThreads / 32];
  x = WarpSum(x);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (const float part : of_warp) sum += part;
  return sum;
}

template <typename Act, typename Cache>
__device__ void StoreLatent(const MlaInputParams& p, int token, int64_t cache_row,
                            const float* weight, const float* cos_sin) {
  const Act* in = static_cast<const Act*>(p.kv_a) + token * p.kv_a_stride;
  Cache* out = static_cast<Cache*>(p.cache) + cache_row * (p.latent_rank + p.rope_dim);
  float square = 0;
  for (int i = threadIdx.x; i < p.latent_rank; i += kThreads) {
    const float x = ToFloat(in[i]);
    square += x * x;
  }
  const float factor = 1.0f / sqrtf(BlockSum(square) / static_cast<float>(p.latent_rank) + p.eps);
  for (int i = threadIdx.x; i < p.latent_rank; i += kThreads) {
    out[i] = FromFloat<Cache>(ToFloat(in[i]) * factor * weight[i]);
  }
  for (int i = threadIdx.x * 2; i < p.rope_dim; i += kThreads * 2) {
    RotatePair(in + p.latent_rank + i, cos_sin + i, out + p.latent_rank + i);
  }
}

// Grid: tokens, 2: one block turns the queries, one makes the latent row. What was there before the
// step comes to shared memory before the wait: [rope_dim] of the table, [latent_rank] weights.
template <typename Act, typename Cache>
__global__ void __launch_bounds__(kThreads) MlaInputKernel(MlaInputParams p) {
  extern __shared__ float tables[];
  cudaTriggerProgrammaticLaunchCompletion();
  const int token = blockIdx.x;
  const int position = p.positions[token];
  const int64_t cache_row = p.cache_rows[token];
  float* const weight = tables + p.rope_dim;
  if (position >= 0) {
    for (int i = threadIdx.x; i < p.rope_dim; i += kThreads) {
      tables[i] = p.cos_sin[static_cast<int64_t>(position) * p.rope_dim + i];
    }
  }
  for (int i = threadIdx.x; blockIdx.y == 1 && i < p.latent_rank; i += kThreads) {
    weight[i] = p.weight[i];
  }
  __syncthreads();
  cudaGridDependencySynchronize();
  if (position < 0) return;
  if (blockIdx.y == 1) {
    StoreLatent<Act, Cache>(p, token, cache_row, weight, tables);
    return;
  }
  const int pairs = p.rope_dim / 2;
  for (int i = threadIdx.x; i < p.heads * pairs; i += kThreads) {
    const int head = i / pairs, at = i % pairs * 2;
    Act* x = static_cast<Act*>(p.q_rope) + token * p.q_rope_stride + head * p.q_rope_head_stride;
    RotatePair(x + at, tables + at, x + at);
  }
}

// The released models' bf16: a warp makes a token's latent row or turns 128 vectors of its queries.
// All loads of what an earlier kernel wrote are on their way before the first is used.
constexpr int kWarps = 8;
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
__device__ void TurnQueries(const MlaInputParams& p, int64_t token, int first,
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
  cudaGridDependencySynchronize();
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

__device__ void StoreLatentVectors(const MlaInputParams& p, int64_t token, const float* angles) {
  const int lane = threadIdx.x % 32, of_latent = p.latent_rank / kVector;
  const bool turns = lane < p.rope_dim / kVector;
  float x[kLatentVectors][kVector] = {}, weight[kLatentVectors][kVector] = {};
  float rope[kVector] = {}, cos_sin[kVector] = {};
  const auto inside = [&](int i) { return i * 32 + lane < of_latent; };
  const auto* in = static_cast<const __nv_bfloat16*>(p.kv_a) + token * p.kv_a_stride;
  auto* out = static_cast<__nv_bfloat16*>(p.cache) +
              p.cache_rows[token] * (p.latent_rank + p.rope_dim);
#pragma unroll
  for (int i = 0; i < kLatentVectors; ++i) {
    if (inside(i)) LoadVector(p.weight + (i * 32 + lane) * kVector, weight[i]);
  }
  if (turns) LoadVector(angles + lane * kVector, cos_sin);
  cudaGridDependencySynchronize();
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

// A warp per token and part: part 0 is the latent row.
__global__ void __launch_bounds__(kWarps * 32) MlaInputVectorKernel(MlaInputParams p, int parts) {
  cudaTriggerProgrammaticLaunchCompletion();
  const int item = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int token = item / parts, part = item % parts;
  const int position = token < p.tokens ? p.positions[token] : -1;
  if (position < 0) return cudaGridDependencySynchronize();
  const float* angles = p.cos_sin + int64_t{position} * p.rope_dim;
  if (part == 0) return StoreLatentVectors(p, token, angles);
  TurnQueries(p, token, (part - 1) * kQueryVectors * 32, angles);
}

bool VectorsFit(const MlaInputParams& p, const CudaContext& context) {
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

void LaunchVectors(const MlaInputParams& p, CudaContext& context) {
  const int vectors = p.heads * p.rope_dim / kVector;
  const int parts = 1 + static_cast<int>(CeilDiv(vectors, kQueryVectors * 32));
  const auto blocks = static_cast<unsigned>(CeilDiv(int64_t{p.tokens} * parts, kWarps));
  Launch(MlaInputVectorKernel, dim3(blocks), dim3(kWarps * 32), 0, context, p, parts);
  HADAL_CUDA_LAUNCHED();
}

}  // namespace

void MlaInput(const MlaInputParams& p, CudaContext& context) {
  HADAL_CHECK(p.cache_dtype != DType::kF8E4M3, "the latent cache is bf16 or f32");
  HADAL_CHECK(p.rope_dim % 2 == 0, "rope_dim {}", p.rope_dim);
  if (p.tokens == 0) return;
  if (VectorsFit(p, context)) return LaunchVectors(p, context);
  const bool float_cache = p.cache_dtype == DType::kF32;
  auto* kernel =
      context.act == DType::kF32
          ? (float_cache ? MlaInputKernel<float, float> : MlaInputKernel<float, __nv_bfloat16>)
          : (float_cache ? MlaInputKernel<__nv_bfloat16, float>
                         : MlaInputKernel<__nv_bfloat16, __nv_bfloat16>);
  const size_t shared = static_cast<size_t>(p.latent_rank + p.rope_dim) * sizeof(float);
  Launch(kernel, dim3(p.tokens, 2), dim3(kThreads), shared, context, p);
  HADAL_CUDA_LAUNCHED();
}

}  // namespace hadal::cuda
