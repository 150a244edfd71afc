#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/device/cuda_check.h"
#include "kernels/cuda/device/cuda_context.h"
#include "kernels/cuda/weights/packed_weight.h"

namespace hadal::bench {

// A context on device 0 for as long as the process lives.
CudaContext& BenchContext(int64_t scratch_bytes);

// What the card in hand can do.
struct Ceilings {
  std::string card;
  int64_t l2_bytes = 0;
  double read_gbs = 0;     // of a kernel that only reads
  double bf16_tflops = 0;  // cuBLASLt, 8192-cube, random operands
};
Ceilings MeasureCeilings(CudaContext& context);

// Runs a bench; what it returns is main's. Without a device it says so and does nothing.
int RunBench(const std::function<void()>& bench);

// Device memory; who wants it back calls cudaFree().
void* DeviceBytes(int64_t bytes);
// The same, filled with random values of a type.
void* RandomDevice(int64_t elements, DType dtype, CudaContext& context);
template <typename T>
T* Upload(const std::vector<T>& host) {
  void* device = DeviceBytes(static_cast<int64_t>(host.size() * sizeof(T)));
  HADAL_CUDA(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  HADAL_CUDA(cudaDeviceSynchronize());
  return static_cast<T*>(device);
}
// `count` random matrices [n, k]; of FP8 with scales of 128 x 128. REQUIRES: k a multiple of 16.
std::unique_ptr<CudaPackedWeight> RandomWeight(int count, int64_t n, int64_t k, DType dtype,
                                               CudaContext& context);

// How many sets of operands of `bytes` each must take turns so that none is met in the cache again.
int ColdSets(const Ceilings& ceilings, int64_t bytes, int most);

// Median microseconds of one call, over replays of a graph of calls 0 .. calls - 1. Call i should
// use operands that calls i + 1 .. do not leave in the cache.
double MedianMicros(int calls, const std::function<void(int)>& call, CudaContext& context);

}  // namespace hadal::bench
