#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/products/matmul.h"
#include "kernels/cuda/weights/weight_view.cuh"

namespace hadal::cuda {
namespace {

constexpr int kTile = 64;      // rows and outputs of a block
constexpr int kDepth = 16;     // inputs per step
constexpr int kThreads = 256;  // each computes 4 x 4
constexpr int kPad = 4;

struct GeneralArgs {
  const void* x;
  int64_t x_stride, x_matrix_stride;
  const void* w;
  int64_t w_stride;
  const float* scale;
  int scale_rows;
  int64_t scale_n, k_blocks;
  int k_lead;
  void* y;
  int64_t y_stride, y_matrix_stride;
  int m;
  int64_t n, k;
};

template <typename W>
__device__ float WeightAt(const GeneralArgs& a, int64_t matrix, int64_t row, int64_t col) {
  const float value = ToFloat(static_cast<const W*>(a.w)[(matrix * a.n + row) * a.w_stride + col]);
  if constexpr (sizeof(W) == 1) {
    return value *
           a.scale[(matrix * a.scale_n + row / a.scale_rows) * a.k_blocks + (col + a.k_lead) / 128];
  }
  return value;
}

// Loads a [kDepth][kTile] step of both operands, zeros outside.
template <typename X, typename W>
__device__ void LoadStep(const GeneralArgs& a, int64_t k0, float (*xs)[kTile + kPad],
                         float (*ws)[kTile + kPad]) {
  const int64_t matrix = blockIdx.z;
  const X* x = static_cast<const X*>(a.x) + matrix * a.x_matrix_stride;
  for (int i = threadIdx.x; i < kTile * kDepth; i += kThreads) {
    const int row = i / kDepth, depth = i % kDepth;
    const int64_t col = k0 + depth;
    const int64_t t = int64_t{blockIdx.y} * kTile + row;
    const int64_t n = int64_t{blockIdx.x} * kTile + row;
    xs[depth][row] = t < a.m && col < a.k ? ToFloat(x[t * a.x_stride + col]) : 0.0f;
    ws[depth][row] = n < a.n && col < a.k ? WeightAt<W>(a, matrix, n, col) : 0.0f;
  }
}

template <typename X, typename W, typename Y>
__global__ void __launch_bounds__(kThreads) GeneralKernel(GeneralArgs a) {
  __shared__ float xs[kDepth][kTile + kPad];
  __shared__ float ws[kDepth][kTile + kPad];
  WaitForPrevious();
  AllowNext();
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  float sum[4][4] = {};
  for (int64_t k0 = 0; k0 < a.k; k0 += kDepth) {
    LoadStep<X, W>(a, k0, xs, ws);
    __syncthreads();
    float part[4][4] = {};  // sums of sums: errors grow with k / kDepth only
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) part[i][j] += xs[d][ty * 4 + i] * ws[d][tx + 16 * j];
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] += part[i][j];
    }
    __syncthreads();
  }
  Y* y = static_cast<Y*>(a.y) + int64_t{blockIdx.z} * a.y_matrix_stride;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t t = int64_t{blockIdx.y} * kTile + ty * 4 + i;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t n = int64_t{blockIdx.x} * kTile + tx + 16 * j;
      if (t < a.m && n < a.n) y[t * a.y_stride + n] = FromFloat<Y>(sum[i][j]);
    }
  }
}

template <typename X, typename Y>
void LaunchGeneral(const Product& p, const GeneralArgs& a, CudaContext& context) {
  const dim3 grid(static_cast<unsigned>((a.n + kTile - 1) / kTile), (p.m + kTile - 1) / kTile,
                  p.matrices);
  switch (p.w->dtype) {
    case DType::kF32:
      return Launch(GeneralKernel<X, float, Y>, grid, dim3(kThreads), 0, context, a);
    case DType::kBF16:
      return Launch(GeneralKernel<X, __nv_bfloat16, Y>, grid, dim3(kThreads), 0, context, a);
    case DType::kF8E4M3:
      return Launch(GeneralKernel<X, uint8_t, Y>, grid, dim3(kThreads), 0, context, a);
  }
}

}  // namespace

bool MatMulGeneral(const Product& p, CudaContext& context) {
  if (p.m == 0) return true;
  const CudaPackedWeight& w = *p.w;
  const GeneralArgs a{p.x,     p.x_stride,   p.x_matrix_stride, w.data,     w.stride,
                      w.scale, w.scale_rows, w.scale_n,         w.k_blocks, w.k_lead,
                      p.y,     p.y_stride,   p.y_matrix_stride, p.m,        w.n,
                      w.k};
  if (context.act == DType::kF32) {
    LaunchGeneral<float, float>(p, a, context);
  } else if (p.float_out) {
    LaunchGeneral<__nv_bfloat16, float>(p, a, context);
  } else {
    LaunchGeneral<__nv_bfloat16, __nv_bfloat16>(p, a, context);
  }
  HADAL_CUDA_LAUNCHED();
  return true;
}

}  // namespace hadal::cuda
