#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "common/dtype.h"
#include "kernels/cuda/device/cuda_check.h"
#include "kernels/cuda/device/cuda_context.h"

namespace hadal::testing {

// Whether there is a device; says so when there is none.
inline bool HaveCudaDevice() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) return true;
  std::printf("skipped: no CUDA device\n");
  return false;
}

inline cudaDeviceProp DeviceProperties() {
  cudaDeviceProp properties{};
  HADAL_CUDA(cudaGetDeviceProperties(&properties, 0));
  return properties;
}
inline bool IsHopper() { return DeviceProperties().major == 9; }

// Device memory between two zones that no kernel may write; every byte starts as 0xff, a NaN in all
// types. What it writes has arrived when it returns: ops run on streams that do not wait for the
// default stream, and copies from pageable memory return before they have arrived.
class GuardedBuffer {
 public:
  explicit GuardedBuffer(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
    HADAL_CUDA(cudaMalloc(&block_, bytes_ + 2 * kGuard));
    HADAL_CUDA(cudaMemset(block_, 0xff, bytes_ + 2 * kGuard));
    HADAL_CUDA(cudaDeviceSynchronize());
  }
  template <typename T>
  explicit GuardedBuffer(const std::vector<T>& host)
      : GuardedBuffer(static_cast<int64_t>(host.size() * sizeof(T))) {
    HADAL_CUDA(cudaMemcpy(data(), host.data(), bytes_, cudaMemcpyHostToDevice));
    HADAL_CUDA(cudaDeviceSynchronize());
  }
  ~GuardedBuffer() { cudaFree(block_); }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  void* data() const { return static_cast<char*>(block_) + kGuard; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data());
  }

  void Poison() const {
    HADAL_CUDA(cudaMemset(data(), 0xff, bytes_));
    HADAL_CUDA(cudaDeviceSynchronize());
  }

  // Waits for everything on the device.
  template <typename T>
  std::vector<T> Download() const {
    HADAL_CUDA(cudaDeviceSynchronize());
    std::vector<T> host(bytes_ / sizeof(T));
    HADAL_CUDA(cudaMemcpy(host.data(), data(), bytes_, cudaMemcpyDeviceToHost));
    return host;
  }
  bool GuardIntact() const {
    HADAL_CUDA(cudaDeviceSynchronize());
    return ZoneIntact(0) && ZoneIntact(kGuard + bytes_);
  }

 private:
  static constexpr size_t kGuard = 4096;

  bool ZoneIntact(size_t at) const {
    std::vector<uint8_t> zone(kGuard);
    HADAL_CUDA(
        cudaMemcpy(zone.data(), static_cast<char*>(block_) + at, kGuard, cudaMemcpyDeviceToHost));
    return std::all_of(zone.begin(), zone.end(), [](uint8_t byte) { return byte == 0xff; });
  }

  size_t bytes_;
  void* block_ = nullptr;
};

// A context on device 0 with everything an op may use; its scratch is poisoned and guarded.
class DeviceFixture {
 public:
  explicit DeviceFixture(DType act, int64_t scratch_bytes = 256 << 20) : scratch_(scratch_bytes) {
    const cudaDeviceProp properties = DeviceProperties();
    context.act = act;
    context.sm_count = properties.multiProcessorCount;
    context.arch = 10 * properties.major + properties.minor;
    HADAL_CUDA(cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking));
    context.scratch.Reset(scratch_.data(), scratch_bytes);
    context.cublas_workspace_bytes = 64 << 20;
    HADAL_CUDA(cudaMalloc(&context.cublas_workspace, 64 << 20));
    HADAL_CHECK(cublasLtCreate(&context.cublas) == CUBLAS_STATUS_SUCCESS);
  }
  ~DeviceFixture() {
    cudaStreamSynchronize(context.stream);
    cublasLtDestroy(context.cublas);
    cudaFree(context.cublas_workspace);
    cudaStreamDestroy(context.stream);
  }
  DeviceFixture(const DeviceFixture&) = delete;
  DeviceFixture& operator=(const DeviceFixture&) = delete;

  // Waits; false when a kernel failed or wrote outside the scratch.
  bool Finished() {
    const cudaError_t error = cudaStreamSynchronize(context.stream);
    if (error != cudaSuccess) std::printf("  device: %s\n", cudaGetErrorString(error));
    return error == cudaSuccess && scratch_.GuardIntact();
  }

  CudaContext context;

 private:
  GuardedBuffer scratch_;
};

// `values` as elements of `dtype`, and rounded to them.
inline std::vector<uint8_t> ToAct(std::vector<float>& values, DType dtype) {
  std::vector<uint8_t> bytes(values.size() * static_cast<size_t>(DTypeSize(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(&bytes[4 * i], &values[i], 4);
    } else {
      const bf16_t rounded = FloatToBf16(values[i]);
      std::memcpy(&bytes[2 * i], &rounded, 2);
      values[i] = Bf16ToFloat(rounded);
    }
  }
  return bytes;
}

// A buffer of `dtype` elements as floats.
inline std::vector<float> DownloadFloats(const GuardedBuffer& buffer, DType dtype) {
  if (dtype == DType::kF32) return buffer.Download<float>();
  std::vector<float> out;
  for (const bf16_t v : buffer.Download<bf16_t>()) out.push_back(Bf16ToFloat(v));
  return out;
}

}  // namespace hadal::testing
