#include <algorithm>

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/vector_io.cuh"
#include "kernels/cuda/device/warp.cuh"
#include "kernels/cuda/rows/ops.h"
#include "kernels/cuda/rows/quantise_row.cuh"

namespace hadal::cuda {
namespace {

constexpr int kMaxThreads = 1024;

// The sum over all threads of the CTA, in every thread. REQUIRES: whole warps; called once.
__device__ float CtaSum(float x) {
  __shared__ float warp_sums[kMaxThreads / 32];
  const int warps = blockDim.x / 32;
  x = WarpSum(x);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
  __syncthreads();
  x = threadIdx.x % 32 < warps ? warp_sums[threadIdx.x % 32] : 0.0f;
  return WarpSum(x);
}

// S: of the residual, T: of activations.
template <typename S, typename T>
struct NormArgs {
  S* residual;
  const S* from;
  const T* delta;
  const float* weight;
  T* out;
  int64_t dim;
  int64_t x_stride;
  int64_t out_stride;
  float eps;
};

// The norm is that of the residual as it is stored, rounded. One CTA per row, one vector per
// thread, which keeps it in registers: memory is read once. Weights are there before the kernel in
// front of this one ends; so are those of the product behind it, which may start as early. Whether
// the thread has a vector; x: the normed one where it is asked for.
template <typename S, typename T>
__device__ __forceinline__ bool NormVector(const NormArgs<S, T>& a, bool wanted,
                                           float (&x)[kVector]) {
  const int64_t i = threadIdx.x * kVector;
  const bool mine = i < a.dim;
  float w[kVector] = {};
  AllowNext();
  if (mine && wanted) LoadVector(a.weight + i, w);
  WaitForPrevious();
  float square = 0;
  if (mine) {
    LoadVector(a.from + blockIdx.x * a.x_stride + i, x);
    if (a.delta != nullptr) {
      float d[kVector];
      LoadVector(a.delta + blockIdx.x * a.dim + i, d);
#pragma unroll
      for (int j = 0; j < kVector; ++j) x[j] = ToFloat(FromFloat<S>(x[j] + d[j]));
    }
    if (a.delta != nullptr || a.from != a.residual) {
      StoreVector(a.residual + blockIdx.x * a.x_stride + i, x);
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) square += x[j] * x[j];
  }
  if (!wanted) return mine;
  const float factor = rsqrtf(CtaSum(square) / static_cast<float>(a.dim) + a.eps);
#pragma unroll
  for (int j = 0; j < kVector; ++j) x[j] *= factor * w[j];
  return mine;
}

template <typename S, typename T>
__global__ void __launch_bounds__(kMaxThreads) NormVectorKernel(NormArgs<S, T> a) {
  float x[kVector] = {};
  const bool wanted = a.out != nullptr, mine = NormVector(a, wanted, x);
  if (mine && wanted) StoreVector(a.out + blockIdx.x * a.out_stride + threadIdx.x * kVector, x);
}

// The normed vector as codes and scales of q, of what is rounded to T first.
template <typename S, typename T>
__global__ void __launch_bounds__(kMaxThreads)
    NormQuantiseKernel(NormArgs<S, T> a, QuantiseParams q) {
  static_assert(kVector * kQuantiseLanes == kQuantiseColumns);
  float x[kVector] = {};
  const bool mine = NormVector(a, true, x);
#pragma unroll
  for (int j = 0; j < kVector; ++j) x[j] = ToFloat(FromFloat<T>(x[j]));
  StoreQuantised(q, x, blockIdx.x, threadIdx.x / kQuantiseLanes, mine);
}

// Any width, any stride. Each thread finds in memory what it wrote there itself.
template <typename S, typename T>
__global__ void __launch_bounds__(kMaxThreads) NormKernel(NormArgs<S, T> a) {
  WaitForPrevious();
  AllowNext();
  S* residual = a.residual + blockIdx.x * a.x_stride;
  float square = 0;
  for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) {
    S x = a.from[blockIdx.x * a.x_stride + i];
    if (a.delta != nullptr) x = FromFloat<S>(ToFloat(x) + ToFloat(a.delta[blockIdx.x * a.dim + i]));
    if (a.delta != nullptr || a.from != a.residual) residual[i] = x;
    square += ToFloat(x) * ToFloat(x);
  }
  if (a.out == nullptr) return;
  const float factor = rsqrtf(CtaSum(square) / static_cast<float>(a.dim) + a.eps);
  T* out = a.out + blockIdx.x * a.out_stride;
  for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) {
    out[i] = FromFloat<T>(ToFloat(residual[i]) * factor * a.weight[i]);
  }
}

template <typename S, typename T>
NormArgs<S, T> ArgsOf(const RmsNormParams& p) {
  return {.residual = static_cast<S*>(p.residual),
          .from = static_cast<const S*>(p.from == nullptr ? p.residual : p.from),
          .delta = static_cast<const T*>(p.delta),
          .weight = p.weight,
          .out = static_cast<T*>(p.out),
          .dim = p.dim,
          .x_stride = p.x_stride,
          .out_stride = p.out_stride,
          .eps = p.eps};
}

template <typename S, typename T>
bool VectorsFit(const NormArgs<S, T>& a) {
  return a.dim % kVector == 0 && a.dim <= kMaxThreads * kVector &&
         VectorRows(a.residual, a.x_stride, sizeof(S)) &&
         VectorRows(a.from, a.x_stride, sizeof(S)) && VectorRows(a.delta, a.dim, sizeof(T)) &&
         VectorRows(a.weight, a.dim, sizeof(float)) && VectorRows(a.out, a.out_stride, sizeof(T));
}

dim3 ThreadsOf(int64_t steps) { return {static_cast<unsigned>((steps + 31) / 32 * 32)}; }

template <typename S, typename T>
void NormAs(const RmsNormParams& p, CudaContext& context) {
  const NormArgs<S, T> args = ArgsOf<S, T>(p);
  const bool vectors = VectorsFit(args);
  const int64_t steps = vectors ? p.dim / kVector : std::min<int64_t>(p.dim, 512);
  Launch(vectors ? NormVectorKernel<S, T> : NormKernel<S, T>, dim3(p.tokens), ThreadsOf(steps), 0,
         context, args);
  HADAL_CUDA_LAUNCHED();
}

template <typename S>
bool NormQuantiseAs(const RmsNormParams& p, const QuantiseParams& q, CudaContext& context) {
  const auto args = ArgsOf<S, __nv_bfloat16>(p);
  if (!VectorsFit(args)) return false;
  Launch(NormQuantiseKernel<S, __nv_bfloat16>, dim3(p.tokens), ThreadsOf(p.dim / kVector), 0,
         context, args, q);
  HADAL_CUDA_LAUNCHED();
  return true;
}

}  // namespace

bool NormQuantise(const RmsNormParams& p, const QuantiseParams& q, CudaContext& context) {
  if (context.act != DType::kBF16) return false;
  return p.float_residual ? NormQuantiseAs<float>(p, q, context)
                          : NormQuantiseAs<__nv_bfloat16>(p, q, context);
}

void RmsNorm(const RmsNormParams& p, CudaContext& context) {
  if (p.tokens == 0) return;
  if (context.act == DType::kF32) return NormAs<float, float>(p, context);
  p.float_residual ? NormAs<float, __nv_bfloat16>(p, context)
                   : NormAs<__nv_bfloat16, __nv_bfloat16>(p, context);
}

}  // namespace hadal::cuda
