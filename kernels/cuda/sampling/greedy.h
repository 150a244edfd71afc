#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/device/cuda_context.h"

namespace hadal::cuda {

// Sample() of rows that all have temperature 0 and ask for no likely tokens.
void SampleGreedy(const SampleParams& p, CudaContext& context);

}  // namespace hadal::cuda
