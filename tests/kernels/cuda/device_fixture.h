#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "common/dtype.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_context.h"

namespace hadal::testing {

// Whether there is a device; says so when there is none.
inline bool HaveCudaDevice() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) return true;
  std::printf("skipped: no CUDA device\n");
  return false;
}

// A context on device 0 with everything an op may use.
class DeviceFixture {
 public:
  explicit DeviceFixture(DType act, int64_t scratch_bytes = 256 << 20) {
    context.act = act;
    cudaDeviceProp properties{};
    HADAL_CUDA(cudaGetDeviceProperties(&properties, 0));
    context.sm_count = properties.multiProcessorCount;
    context.arch = 10 * properties.major + properties.minor;
    HADAL_CUDA(cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking));
    HADAL_CUDA(cudaMalloc(&scratch_, static_cast<size_t>(scratch_bytes)));
    HADAL_CUDA(cudaMemset(scratch_, 0xff, static_cast<size_t>(scratch_bytes)));
    context.scratch.Reset(scratch_, scratch_bytes);
    context.cublas_workspace_bytes = 64 << 20;
    HADAL_CUDA(cudaMalloc(&context.cublas_workspace, 64 << 20));
    HADAL_CHECK(cublasLtCreate(&context.cublas) == CUBLAS_STATUS_SUCCESS);
    HADAL_CUDA(cudaDeviceSynchronize());
  }
  ~DeviceFixture() {
    cudaStreamSynchronize(context.stream);
    cublasLtDestroy(context.cublas);
    cudaFree(context.cublas_workspace);
    cudaFree(scratch_);
    cudaStreamDestroy(context.stream);
  }
  DeviceFixture(const DeviceFixture&) = delete;
  DeviceFixture& operator=(const DeviceFixture&) = delete;

  CudaContext context;

 private:
  void* scratch_ = nullptr;
};

// Device memory with a guard zone behind it; every byte starts as 0xff, a NaN in all types.
class GuardedBuffer {
 public:
  explicit GuardedBuffer(int64_t bytes) : bytes_(bytes) {
    HADAL_CUDA(cudaMalloc(&data_, static_cast<size_t>(bytes + kGuard)));
    HADAL_CUDA(cudaMemset(data_, 0xff, static_cast<size_t>(bytes + kGuard)));
    HADAL_CUDA(cudaDeviceSynchronize());
  }
  ~GuardedBuffer() { cudaFree(data_); }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  void* data() const { return data_; }

  void Upload(const void* host, int64_t bytes) {
    HADAL_CUDA(cudaMemcpy(data_, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice));
  }

  template <typename T>
  std::vector<T> Download() const {
    HADAL_CUDA(cudaDeviceSynchronize());
    std::vector<T> host(static_cast<size_t>(bytes_) / sizeof(T));
    HADAL_CUDA(cudaMemcpy(host.data(), data_, static_cast<size_t>(bytes_), cudaMemcpyDeviceToHost));
    return host;
  }

  bool GuardIntact() const {
    std::vector<uint8_t> guard(kGuard);
    HADAL_CUDA(cudaMemcpy(guard.data(), static_cast<char*>(data_) + bytes_, kGuard,
                          cudaMemcpyDeviceToHost));
    for (const uint8_t byte : guard) {
      if (byte != 0xff) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t kGuard = 4096;
  int64_t bytes_;
  void* data_ = nullptr;
};

// `values` as act elements, and rounded to them.
inline std::vector<uint8_t> ToAct(std::vector<float>& values, DType act) {
  std::vector<uint8_t> bytes(values.size() * static_cast<size_t>(DTypeSize(act)));
  for (size_t i = 0; i < values.size(); ++i) {
    if (act == DType::kF32) {
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
