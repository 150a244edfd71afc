#include "kernels/cuda/cuda_device.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device/cuda_check.h"

namespace hadal {
namespace {

// Loads only where the binary holds code for the device.
__global__ void ProbeKernel() {}

Status NoDevice(cudaError_t error) {
  int driver = 0;
  int runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) {
    return FailedPrecondition(
        "no CUDA device: the NVIDIA driver is not loaded; start on a GPU node, or compute "
        "with the backend cpu");
  }
  if (error == cudaErrorInsufficientDriver) {
    return FailedPrecondition(
        "the NVIDIA driver supports CUDA {}.{}, this binary needs {}.{}; install "
        "a newer driver",
        driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
  }
  return FailedPrecondition("no CUDA device: {}; is CUDA_VISIBLE_DEVICES right?",
                            error == cudaSuccess ? "none is visible" : cudaGetErrorString(error));
}

}  // namespace

int CudaDeviceCount() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // or the next launch would report it
  return 0;
}

StatusOr<std::string> OpenCudaDevice(int device, CudaContext* context) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    cudaGetLastError();
    return NoDevice(error);
  }
  if (device < 0 || device >= count) {
    return FailedPrecondition("CUDA device {} does not exist: {} visible, counted from 0", device,
                              count);
  }
  HADAL_CUDA(cudaSetDevice(device));
  cudaDeviceProp properties;
  HADAL_CUDA(cudaGetDeviceProperties(&properties, device));
  context->device = device;
  context->sm_count = properties.multiProcessorCount;
  context->arch = 10 * properties.major + properties.minor;
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, ProbeKernel) != cudaSuccess) {
    cudaGetLastError();
    return FailedPrecondition("this binary has no code for {} (sm_{}); build with "
                              "-DCMAKE_CUDA_ARCHITECTURES={}", properties.name, context->arch,
                              context->arch);
  }
  return std::string(properties.name);
}

std::string DeviceUuid(int device) {
  cudaDeviceProp properties;
  HADAL_CUDA(cudaGetDeviceProperties(&properties, device));
  return std::string(properties.uuid.bytes, sizeof(properties.uuid.bytes));
}

}  // namespace hadal
