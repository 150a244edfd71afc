#include "kernels/cuda/device_memory.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <new>

#include "kernels/cuda/cuda_check.h"

namespace hadal {
namespace {

// What a process takes from a device before its first allocation.
constexpr int64_t kProcessBytes = int64_t{640} << 20;

struct CudaBuffer : DeviceBuffer {
  std::shared_ptr<std::atomic<int64_t>> used;
  ~CudaBuffer() override {
    cudaFree(data);
    if (used != nullptr) *used -= bytes;
  }
};

struct PinnedBuffer : HostBuffer {
  ~PinnedBuffer() override { cudaFreeHost(data); }
};

void CheckAllocation(cudaError_t error, const char* call, int64_t bytes) {
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0;
    size_t total = 0;
    cudaMemGetInfo(&free, &total);
    spdlog::error("out of memory: {} of {} bytes; {} of {} bytes of the device are free", call, bytes,
                  free, total);
    throw std::bad_alloc();
  }
  CheckCuda(error, call, __FILE__, __LINE__);
}

}  // namespace

std::unique_ptr<DeviceBuffer> DeviceMemory::Allocate(int64_t bytes) {
  auto buffer = std::make_unique<CudaBuffer>();
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  CheckAllocation(cudaMalloc(&buffer->data, size), "cudaMalloc", bytes);
  buffer->bytes = bytes;
  buffer->used = used_;
  *used_ += bytes;
  return buffer;
}

int64_t DeviceMemory::Available(int ranks) const {
  size_t free = 0;
  size_t total = 0;
  HADAL_CUDA(cudaMemGetInfo(&free, &total));
  if (ranks <= 1) return static_cast<int64_t>(free);
  const int64_t share = static_cast<int64_t>(total) / ranks - kProcessBytes - *used_;
  return std::clamp<int64_t>(share, 0, static_cast<int64_t>(free));
}

std::unique_ptr<HostBuffer> AllocatePinned(int64_t bytes) {
  auto buffer = std::make_unique<PinnedBuffer>();
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  CheckAllocation(cudaMallocHost(&buffer->data, size), "cudaMallocHost", bytes);
  buffer->bytes = bytes;
  return buffer;
}

}  // namespace hadal
