#pragma once

#include <functional>

#include "kernels/cuda/cuda_context.h"

// What the benches of the CUDA kernels share: the card's ceilings, and timing by replayed graphs.

namespace hadal::cuda {

struct Ceilings {
  double read_gbs = 0;     // GB/s of a kernel that only reads
  double bf16_tflops = 0;  // of an 8192-cube through cuBLASLt, random values
};
Ceilings MeasureCeilings(CudaContext& context);

// A context with a stream, cuBLASLt and `scratch_bytes` of scratch; lives as long as the process.
CudaContext& BenchContext(int64_t scratch_bytes);

// Device memory for as long as the process lives; bf16 values of about normal distribution.
void* BenchAllocate(int64_t bytes);
void* BenchRandom(int64_t count, float deviation);

// op(0) .. op(launches - 1) captured once and replayed: median microseconds of one.
double MedianMicroseconds(CudaContext& context, int launches, const std::function<void(int)>& op);

// How many launches over different data of `bytes` each keep the L2 cache cold.
int ColdLaunches(int64_t bytes);

}  // namespace hadal::cuda
