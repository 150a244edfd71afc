#include "common/check.h"
#include "kernels/cuda/attention/mla_input.cuh"
#include "kernels/cuda/attention/ops.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/warp.cuh"

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
  AllowNext();
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
  WaitForPrevious();
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

__global__ void __launch_bounds__(kInputWarps * 32)
    MlaInputVectorKernel(MlaInputParams p, int parts) {
  AllowNext();
  InputBlock(p, static_cast<int>(blockIdx.x), parts);
}

void LaunchVectors(const MlaInputParams& p, CudaContext& context) {
  Launch(MlaInputVectorKernel, dim3(static_cast<unsigned>(InputBlocks(p))), dim3(kInputWarps * 32),
         0, context, p, InputParts(p));
  HADAL_CUDA_LAUNCHED();
}

}  // namespace

void MlaInput(const MlaInputParams& p, CudaContext& context) {
  HADAL_CHECK(p.cache_dtype != DType::kF8E4M3, "the latent cache is bf16 or f32");
  HADAL_CHECK(p.rope_dim % 2 == 0, "rope_dim {}", p.rope_dim);
  if (p.tokens == 0) return;
  if (InputVectorsFit(p, context)) return LaunchVectors(p, context);
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
