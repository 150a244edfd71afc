#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/quantise.cuh"

namespace hadal::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlock = 128;         // columns that share a scale
constexpr int kLanes = kBlock / 8;  // threads of a block of columns, 16 bytes each

__device__ void LoadEight(const __nv_bfloat16* from, float (&v)[8]) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&bits);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __bfloat1622float2(pairs[i]);
    v[2 * i] = pair.x;
    v[2 * i + 1] = pair.y;
  }
}

// Sixteen lanes per row and block of columns.
__global__ void __launch_bounds__(kThreads) QuantiseKernel(QuantiseParams p, int64_t blocks) {
  const int64_t item = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  const int64_t r = item / blocks, b = item % blocks;
  const int64_t col = b * kBlock + threadIdx.x % kLanes * 8;
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
  const int rows = p.row_count == nullptr ? p.rows : min(p.rows, *p.row_count);
  float v[8] = {};
  const int64_t from = r >= rows ? -1 : p.row_of == nullptr ? r : p.row_of[r];
  if (from >= 0 && col < p.columns) {
    LoadEight(p.x + from * p.x_stride + col, v);
    if (p.silu_mul) {
      float up[8];
      LoadEight(p.x + from * p.x_stride + p.columns + col, up);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = Silu(v[i]) * up[i];
    }
  }
  float amax = 1e-4f;
#pragma unroll
  for (int i = 0; i < 8; ++i) amax = fmaxf(amax, fabsf(v[i]));
#pragma unroll
  for (int lane = kLanes / 2; lane > 0; lane /= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, lane));
  }
  if (r >= rows) return;
  const float inverse = 448.0f / amax;
  uint2 codes;
  auto* pairs = reinterpret_cast<__nv_fp8x2_storage_t*>(&codes);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = __nv_cvt_float2_to_fp8x2(make_float2(v[2 * i] * inverse, v[2 * i + 1] * inverse),
                                        __NV_SATFINITE, __NV_E4M3);
  }
  if (col < p.columns) *reinterpret_cast<uint2*>(p.codes + r * p.code_stride + col) = codes;
  if (threadIdx.x % kLanes == 0) {
    p.scales[r * p.scale_row_stride + b * p.scale_block_stride] = amax / 448.0f;
  }
}

}  // namespace

void Quantise(const QuantiseParams& p, CudaContext& context) {
  if (p.rows == 0) return;
  const int64_t blocks = (p.columns + kBlock - 1) / kBlock;
  const int64_t threads = p.rows * blocks * kLanes;
  Launch(QuantiseKernel, dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)),
         dim3(kThreads), 0, context, p, blocks);
  HADAL_CUDA_LAUNCHED();
}

}  // namespace hadal::cuda
