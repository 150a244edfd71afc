#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace hadal {

// A CUDA, cuBLAS or NCCL call failed, or a kernel did: the device cannot be trusted any more.
// Caught once, at the step loop.
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws CudaError with the call's text, its place and the device's words.
[[noreturn]] void ThrowCudaError(const char* call, const char* file, int line, const char* what);

inline void CheckCuda(cudaError_t error, const char* call, const char* file, int line) {
  if (error != cudaSuccess) ThrowCudaError(call, file, line, cudaGetErrorString(error));
}

}  // namespace hadal

#define HADAL_CUDA(call) ::hadal::CheckCuda((call), #call, __FILE__, __LINE__)
// After every kernel launch; reports bad launch parameters, not what happens while it runs.
#define HADAL_CUDA_LAUNCHED() HADAL_CUDA(cudaGetLastError())
