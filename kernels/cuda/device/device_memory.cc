#include "kernels/cuda/device/device_memory.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <new>

#include "kernels/cuda/device/cuda_check.h"

namespace hadal {
namespace {

struct CudaBuffer : DeviceBuffer {
  ~CudaBuffer() override { cudaFree(data); }
};

struct PinnedBuffer : HostBuffer {
  ~PinnedBuffer() override { cudaFreeHost(data); }
};

void CheckAllocation(cudaError_t error, const char* call, int64_t bytes) {
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    spdlog::error("out of memory: {} of {} bytes; {} bytes of the device are free", call, bytes,
                  FreeDeviceBytes());
    throw std::bad_alloc();
  }
  CheckCuda(error, call, __FILE__, __LINE__);
}

}  // namespace

std::unique_ptr<DeviceBuffer> AllocateDevice(int64_t bytes) {
  auto buffer = std::make_unique<CudaBuffer>();
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  CheckAllocation(cudaMalloc(&buffer->data, size), "cudaMalloc", bytes);
  buffer->bytes = bytes;
  return buffer;
}

std::unique_ptr<HostBuffer> AllocatePinned(int64_t bytes) {
  auto buffer = std::make_unique<PinnedBuffer>();
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  CheckAllocation(cudaMallocHost(&buffer->data, size), "cudaMallocHost", bytes);
  buffer->bytes = bytes;
  return buffer;
}

int64_t FreeDeviceBytes() {
  size_t free = 0;
  size_t total = 0;
  HADAL_CUDA(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free);
}

}  // namespace hadal
