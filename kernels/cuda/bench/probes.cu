#include <algorithm>
#include <cstdio>
#include <exception>
#include <vector>

#include "kernels/cuda/bench/probes.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/cuda_check.h"
#include "kernels/cuda/products/cublas_plan.h"

namespace hadal::bench {
namespace {

__device__ uint32_t Hash(uint64_t i) {
  uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<uint32_t>(z >> 32);
}

// Values in [-1, 1); of e4m3 random finite codes.
template <typename T>
__global__ void FillKernel(T* out, int64_t count) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const uint32_t bits = Hash(static_cast<uint64_t>(i));
    if constexpr (sizeof(T) == 1) {
      const auto code = static_cast<uint8_t>(bits);
      out[i] = (code & 0x7f) == 0x7f ? 0 : code;
    } else {
      out[i] = cuda::FromFloat<T>(static_cast<int32_t>(bits) * (1.0f / 2147483648.0f));
    }
  }
}

__global__ void __launch_bounds__(512) ReadKernel(const uint4* data, int64_t count, uint32_t* out) {
  constexpr int kUnroll = 8;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  uint32_t sum = 0;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += stride * kUnroll) {
    uint4 v[kUnroll];
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) {
      const int64_t at = i + j * stride;
      v[j] = at < count ? __ldcs(data + at) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 0x12345678u) *out = sum;  // never, but the compiler does not know
}

template <typename T>
void Fill(void* out, int64_t count, CudaContext& context) {
  FillKernel<<<8 * context.sm_count, 256, 0, context.stream>>>(static_cast<T*>(out), count);
  HADAL_CUDA_LAUNCHED();
}

void Fill(void* out, int64_t count, DType dtype, CudaContext& context) {
  switch (dtype) {
    case DType::kF32:
      return Fill<float>(out, count, context);
    case DType::kBF16:
      return Fill<__nv_bfloat16>(out, count, context);
    case DType::kF8E4M3:
      return Fill<uint8_t>(out, count, context);
  }
}

}  // namespace

CudaContext& BenchContext(int64_t scratch_bytes) {
  static CudaContext context = [&] {
    CudaContext c;
    cudaDeviceProp properties{};
    HADAL_CUDA(cudaGetDeviceProperties(&properties, 0));
    c.sm_count = properties.multiProcessorCount;
    c.arch = 10 * properties.major + properties.minor;
    HADAL_CUDA(cudaStreamCreateWithFlags(&c.stream, cudaStreamNonBlocking));
    c.scratch.Reset(DeviceBytes(scratch_bytes), scratch_bytes);
    c.cublas_workspace_bytes = 64 << 20;
    c.cublas_workspace = DeviceBytes(64 << 20);
    HADAL_CHECK(cublasLtCreate(&c.cublas) == CUBLAS_STATUS_SUCCESS);
    return c;
  }();
  return context;
}

int RunBench(const std::function<void()>& bench) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  try {
    bench();
    return 0;
  } catch (const std::exception& e) {
    std::printf("%s\n", e.what());
    return 1;
  }
}

void* DeviceBytes(int64_t bytes) {
  void* data = nullptr;
  HADAL_CUDA(cudaMalloc(&data, static_cast<size_t>(bytes)));
  return data;
}

void* RandomDevice(int64_t elements, DType dtype, CudaContext& context) {
  void* data = DeviceBytes(elements * DTypeSize(dtype));
  Fill(data, elements, dtype, context);
  return data;
}

std::unique_ptr<CudaPackedWeight> RandomWeight(int count, int64_t n, int64_t k, DType dtype,
                                               CudaContext& context) {
  auto w = std::make_unique<CudaPackedWeight>();
  w->count = count;
  w->n = n;
  w->k = k;
  w->dtype = dtype;
  w->stride = k;
  const bool f8 = dtype == DType::kF8E4M3;
  if (f8) {
    w->scale_rows = 128;
    w->scale_n = (n + 127) / 128;
    w->k_blocks = (k + 127) / 128;
  }
  // Scales lie behind the elements, with which they are freed.
  const int64_t scales = count * w->scale_n * w->k_blocks;
  const int64_t scale_at = (count * n * k * DTypeSize(dtype) + 255) / 256 * 256;
  char* data = static_cast<char*>(DeviceBytes(scale_at + scales * int64_t{sizeof(float)}));
  Fill(data, count * n * k, dtype, context);
  if (f8) Fill(data + scale_at, scales, DType::kF32, context);
  w->data = data;
  w->scale = f8 ? reinterpret_cast<const float*>(data + scale_at) : nullptr;
  return w;
}

int ColdSets(const Ceilings& ceilings, int64_t bytes, int most) {
  const int64_t sets = 5 * ceilings.l2_bytes / 2 / std::max<int64_t>(bytes, 1) + 1;
  return static_cast<int>(std::clamp<int64_t>(sets, 2, most));
}

double MedianMicros(int calls, const std::function<void(int)>& call, CudaContext& context) {
  constexpr int kRepeats = 15;
  call(0);  // loads the kernel, chooses algorithms
  HADAL_CUDA(cudaStreamSynchronize(context.stream));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  // As GraphCache does: the other modes end at a cudaFree(), even of nothing, as views of prompts'
  // projections make it.
  HADAL_CUDA(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeRelaxed));
  for (int i = 0; i < calls; ++i) call(i);
  HADAL_CUDA(cudaStreamEndCapture(context.stream, &graph));
  HADAL_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  std::vector<cudaEvent_t> events(kRepeats + 1);
  for (cudaEvent_t& event : events) HADAL_CUDA(cudaEventCreate(&event));
  HADAL_CUDA(cudaGraphLaunch(exec, context.stream));
  HADAL_CUDA(cudaEventRecord(events[0], context.stream));
  for (int i = 0; i < kRepeats; ++i) {
    HADAL_CUDA(cudaGraphLaunch(exec, context.stream));
    HADAL_CUDA(cudaEventRecord(events[static_cast<size_t>(i) + 1], context.stream));
  }
  HADAL_CUDA(cudaStreamSynchronize(context.stream));
  std::vector<float> millis(kRepeats);
  for (size_t i = 0; i < millis.size(); ++i) {
    HADAL_CUDA(cudaEventElapsedTime(&millis[i], events[i], events[i + 1]));
  }
  for (cudaEvent_t event : events) cudaEventDestroy(event);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  std::nth_element(millis.begin(), millis.begin() + kRepeats / 2, millis.end());
  return 1e3 * millis[kRepeats / 2] / calls;
}

Ceilings MeasureCeilings(CudaContext& context) {
  Ceilings ceilings;
  cudaDeviceProp properties{};
  HADAL_CUDA(cudaGetDeviceProperties(&properties, 0));
  ceilings.card = properties.name;
  ceilings.l2_bytes = properties.l2CacheSize;
  constexpr int64_t kReadBytes = int64_t{2} << 30;
  void* data = RandomDevice(kReadBytes / 2, DType::kBF16, context);
  const double read = MedianMicros(
      2,
      [&](int) {
        ReadKernel<<<4 * context.sm_count, 512, 0, context.stream>>>(
            static_cast<const uint4*>(data), kReadBytes / 16,
            static_cast<uint32_t*>(context.cublas_workspace));
        HADAL_CUDA_LAUNCHED();
      },
      context);
  ceilings.read_gbs = kReadBytes / read / 1e3;
  constexpr int64_t kCube = 8192;
  const auto* x = static_cast<const char*>(data);
  const double cube = MedianMicros(
      4,
      [&](int) {
        HADAL_CHECK(cuda::RunCublas({.x = x,
                                     .x_stride = kCube,
                                     .w = x + kCube * kCube * 2,
                                     .w_stride = kCube,
                                     .y = const_cast<char*>(x) + (int64_t{1} << 30),
                                     .y_stride = kCube,
                                     .m = kCube,
                                     .n = kCube,
                                     .k = kCube},
                                    context));
      },
      context);
  ceilings.bf16_tflops = 2.0 * kCube * kCube * kCube / cube / 1e6;
  HADAL_CUDA(cudaFree(data));
  return ceilings;
}

}  // namespace hadal::bench
