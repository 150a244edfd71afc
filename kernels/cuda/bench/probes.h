#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "kernels/cuda/cuda_context.h"

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

// Device memory that is never freed, filled with random values of a type.
void* RandomDevice(int64_t elements, DType dtype, CudaContext& context);

// Median microseconds of one call, over replays of a graph of calls 0 .. calls - 1. Call i should
// use operands that calls i + 1 .. do not leave in the cache.
double MedianMicros(int calls, const std::function<void(int)>& call, CudaContext& context);

}  // namespace hadal::bench
