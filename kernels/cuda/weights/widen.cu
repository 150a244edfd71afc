#include <cuda_fp8.h>

#include "common/check.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/vector_io.cuh"
#include "kernels/cuda/weights/widen.h"

namespace hadal::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 16;  // codes of a thread; rows are padded to whole chunks with zeros
constexpr int kScaleBlock = 128;

struct WidenArgs {
  const uint4* codes;  // of the first matrix
  const float* scale;  // of the first matrix
  int64_t scale_n;
  int64_t k_blocks;
  int scale_rows;
  int k_lead;
  unsigned n;  // rows of a matrix
  unsigned row_chunks;
  unsigned chunks;  // of all matrices
};

__device__ __forceinline__ float2 WidenPair(uint32_t codes, int pair) {
  const auto two = static_cast<__nv_fp8x2_storage_t>(codes >> (16 * pair));
  return __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(two, __NV_E4M3)));
}

// A thread has its codes and scales before it waits: they were there before the step.
template <typename Act>
__global__ void __launch_bounds__(kThreads) WidenKernel(WidenArgs a, Act* out) {
  AllowNext();
  const unsigned chunk = min(blockIdx.x * kThreads + threadIdx.x, a.chunks - 1);
  const unsigned row = chunk / a.row_chunks, matrix = row / a.n;
  const int column = static_cast<int>(chunk - row * a.row_chunks) * kChunk + a.k_lead;
  const float* scales =
      a.scale + (matrix * a.scale_n + (row - matrix * a.n) / a.scale_rows) * a.k_blocks;
  const uint4 raw = a.codes[chunk];
  // Two blocks of columns at most; padding may lie behind the last.
  const int64_t first = column / kScaleBlock;
  const int in_first = kScaleBlock - column % kScaleBlock;
  const float low = scales[first], high = scales[min(first + 1, a.k_blocks - 1)];
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  float x[2][kVector];
#pragma unroll
  for (int i = 0; i < kChunk; i += 2) {
    const float2 pair = WidenPair(words[i / 4], i / 2 % 2);
    x[i / kVector][i % kVector] = pair.x * (i < in_first ? low : high);
    x[i / kVector][i % kVector + 1] = pair.y * (i + 1 < in_first ? low : high);
  }
  WaitForPrevious();
  StoreVector(out + int64_t{chunk} * kChunk, x[0]);
  StoreVector(out + int64_t{chunk} * kChunk + kVector, x[1]);
}

}  // namespace

void WidenF8(const CudaPackedWeight& w, int first, int count, DType type, void* out,
             CudaContext& context) {
  HADAL_CHECK(w.dtype == DType::kF8E4M3 && w.stride % kChunk == 0 && first + count <= w.count);
  const int64_t chunks = count * w.n * w.stride / kChunk;
  if (chunks == 0) return;
  const WidenArgs args{reinterpret_cast<const uint4*>(w.matrix(first)),
                       w.scale + first * w.scale_n * w.k_blocks,
                       w.scale_n,
                       w.k_blocks,
                       w.scale_rows,
                       w.k_lead,
                       static_cast<unsigned>(w.n),
                       static_cast<unsigned>(w.stride / kChunk),
                       static_cast<unsigned>(chunks)};
  const dim3 grid(static_cast<unsigned>((chunks + kThreads - 1) / kThreads));
  if (type == DType::kF32) {
    Launch(WidenKernel<float>, grid, dim3(kThreads), 0, context, args, static_cast<float*>(out));
  } else {
    Launch(WidenKernel<__nv_bfloat16>, grid, dim3(kThreads), 0, context, args,
           static_cast<__nv_bfloat16*>(out));
  }
  HADAL_CUDA_LAUNCHED();
}

}  // namespace hadal::cuda
