#include <algorithm>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/rows/ops.h"

namespace hadal::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxCtasPerRow = 64;

// Grid: [CTAs of a row, rows]. `width` and strides count elements.
template <typename T>
__global__ void CopyRowsKernel(const T* from, int64_t from_stride, T* to, int64_t to_stride,
                               int64_t width) {
  WaitForPrevious();
  AllowNext();
  from += blockIdx.y * from_stride;
  to += blockIdx.y * to_stride;
  for (int64_t i = blockIdx.x * kThreads + threadIdx.x; i < width; i += gridDim.x * kThreads) {
    to[i] = from[i];
  }
}

template <typename T>
void CopyRowsAs(const CopyRowsParams& p, CudaContext& context) {
  constexpr int64_t kBytes = sizeof(T);
  constexpr int kMaxRows = 65535;  // of one grid
  const int64_t width = p.bytes / kBytes;
  const auto ctas = static_cast<unsigned>(
      std::clamp<int64_t>((width + kThreads - 1) / kThreads, 1, kMaxCtasPerRow));
  for (int first = 0; first < p.rows; first += kMaxRows) {
    const auto* from = static_cast<const char*>(p.from) + first * p.from_stride;
    auto* to = static_cast<char*>(p.to) + first * p.to_stride;
    Launch(CopyRowsKernel<T>, dim3(ctas, std::min(p.rows - first, kMaxRows)), dim3(kThreads), 0,
           context, reinterpret_cast<const T*>(from), p.from_stride / kBytes,
           reinterpret_cast<T*>(to), p.to_stride / kBytes, width);
    HADAL_CUDA_LAUNCHED();
  }
}

}  // namespace

void CopyRows(const CopyRowsParams& p, CudaContext& context) {
  if (p.rows == 0 || p.bytes == 0) return;
  const auto all = static_cast<uint64_t>(p.bytes) | static_cast<uint64_t>(p.from_stride) |
                   static_cast<uint64_t>(p.to_stride) | reinterpret_cast<uintptr_t>(p.from) |
                   reinterpret_cast<uintptr_t>(p.to);
  if (all % 16 == 0) return CopyRowsAs<uint4>(p, context);
  if (all % 4 == 0) return CopyRowsAs<uint32_t>(p, context);
  CopyRowsAs<uint8_t>(p, context);
}

}  // namespace hadal::cuda
