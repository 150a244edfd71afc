#include <cuda_bf16.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "common/check.h"
#include "kernels/cuda/bench/probes.h"
#include "kernels/cuda/cuda_check.h"

namespace hadal::cuda {
namespace {

__device__ uint32_t Hash(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

__global__ void RandomKernel(__nv_bfloat16* out, int64_t count, float deviation) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    float sum = 0;  // of four uniform values: variance 1 / 3
    for (uint32_t j = 0; j < 4; ++j) {
      sum += static_cast<float>(Hash(static_cast<uint32_t>(i * 4 + j))) * 0x1p-32f - 0.5f;
    }
    out[i] = __float2bfloat16_rn(sum * 1.7320508f * deviation);
  }
}

__global__ void ReadKernel(const uint4* in, int64_t count, uint4* out) {
  uint4 sum = make_uint4(0, 0, 0, 0);
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 8
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint4 x = __ldcs(in + i);
    sum.x ^= x.x, sum.y ^= x.y, sum.z ^= x.z, sum.w ^= x.w;
  }
  if (sum.x == 0x12345678u && sum.y == sum.z && sum.w == 1) *out = sum;
}

double GemmTflops(CudaContext& context) {
  constexpr int64_t kSide = 8192;
  const void* a = BenchRandom(kSide * kSide, 1);
  const void* b = BenchRandom(kSide * kSide, 1);
  void* c = BenchAllocate(kSide * kSide * 2);
  cublasLtMatmulDesc_t op = nullptr;
  cublasLtMatrixLayout_t layout = nullptr;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed));
  cublasLtMatrixLayoutCreate(&layout, CUDA_R_16BF, kSide, kSide, kSide);
  cublasLtMatmulPreference_t preference = nullptr;
  cublasLtMatmulPreferenceCreate(&preference);
  const size_t workspace = static_cast<size_t>(context.cublas_workspace_bytes);
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                       &workspace, sizeof(workspace));
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  cublasLtMatmulAlgoGetHeuristic(context.cublas, op, layout, layout, layout, layout, preference, 1,
                                 &found, &count);
  HADAL_CHECK(count == 1);
  const float one = 1, zero = 0;
  const double us = MedianMicroseconds(context, 10, [&](int) {
    HADAL_CHECK(cublasLtMatmul(context.cublas, op, &one, a, layout, b, layout, &zero, c, layout, c,
                               layout, &found.algo, context.cublas_workspace, workspace,
                               context.stream) == CUBLAS_STATUS_SUCCESS);
  });
  return 2.0 * kSide * kSide * kSide / us * 1e-6;
}

}  // namespace

Ceilings MeasureCeilings(CudaContext& context) {
  constexpr int64_t kBytes = int64_t{2} << 30;
  const auto* data = static_cast<const uint4*>(BenchRandom(kBytes / 2, 1));
  auto* out = static_cast<uint4*>(BenchAllocate(16));
  Ceilings ceilings;
  for (const int blocks : {4, 8, 16}) {
    const double us = MedianMicroseconds(context, 5, [&](int) {
      ReadKernel<<<context.sm_count * blocks, 512, 0, context.stream>>>(data, kBytes / 16, out);
      HADAL_CUDA_LAUNCHED();
    });
    ceilings.read_gbs = std::max(ceilings.read_gbs, kBytes / us * 1e-3);
  }
  ceilings.bf16_tflops = GemmTflops(context);
  std::printf("ceilings: read %.0f GB/s, bf16 %.0f TFLOP/s\n", ceilings.read_gbs,
              ceilings.bf16_tflops);
  return ceilings;
}

CudaContext& BenchContext(int64_t scratch_bytes) {
  static CudaContext context;
  cudaDeviceProp properties{};
  HADAL_CUDA(cudaGetDeviceProperties(&properties, 0));
  context.sm_count = properties.multiProcessorCount;
  context.arch = 10 * properties.major + properties.minor;
  std::printf("%s, %d SMs\n", properties.name, context.sm_count);
  HADAL_CUDA(cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking));
  HADAL_CHECK(cublasLtCreate(&context.cublas) == CUBLAS_STATUS_SUCCESS);
  context.cublas_workspace_bytes = 64 << 20;
  context.cublas_workspace = BenchAllocate(context.cublas_workspace_bytes);
  context.scratch.Reset(BenchAllocate(scratch_bytes), scratch_bytes);
  return context;
}

void* BenchAllocate(int64_t bytes) {
  void* data = nullptr;
  HADAL_CUDA(cudaMalloc(&data, static_cast<size_t>(bytes)));
  return data;
}

void* BenchRandom(int64_t count, float deviation) {
  auto* data = static_cast<__nv_bfloat16*>(BenchAllocate(count * 2));
  RandomKernel<<<2048, 256>>>(data, count, deviation);
  HADAL_CUDA_LAUNCHED();
  HADAL_CUDA(cudaDeviceSynchronize());
  return data;
}

double MedianMicroseconds(CudaContext& context, int launches, const std::function<void(int)>& op) {
  op(0);  // what is done once, such as loading kernels, must not happen under capture
  HADAL_CUDA(cudaStreamSynchronize(context.stream));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  HADAL_CUDA(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < launches; ++i) op(i);
  HADAL_CUDA(cudaStreamEndCapture(context.stream, &graph));
  HADAL_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin = nullptr, end = nullptr;
  HADAL_CUDA(cudaEventCreate(&begin));
  HADAL_CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 7; ++i) {
    HADAL_CUDA(cudaEventRecord(begin, context.stream));
    HADAL_CUDA(cudaGraphLaunch(exec, context.stream));
    HADAL_CUDA(cudaEventRecord(end, context.stream));
    HADAL_CUDA(cudaStreamSynchronize(context.stream));
    float ms = 0;
    HADAL_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 2) times.push_back(ms * 1000 / static_cast<float>(launches));
  }
  HADAL_CUDA(cudaEventDestroy(begin));
  HADAL_CUDA(cudaEventDestroy(end));
  HADAL_CUDA(cudaGraphExecDestroy(exec));
  HADAL_CUDA(cudaGraphDestroy(graph));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

int ColdLaunches(int64_t bytes) {
  constexpr int64_t kCold = int64_t{160} << 20;
  return static_cast<int>(std::clamp<int64_t>(kCold / std::max<int64_t>(bytes, 1), 20, 300));
}

}  // namespace hadal::cuda
