#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/device/cuda_context.h"

namespace hadal::cuda {

// Tokens from logits. The ops of that name in kernels/backend.h, on context.stream, for all
// dtypes and shapes.
void Sample(const SampleParams& p, CudaContext& context);
void TokenLogprobs(const TokenLogprobParams& p, CudaContext& context);

// Upper bound of what these take from CudaContext::scratch.
int64_t SampleScratchBytes(const OpLimits& limits);

}  // namespace hadal::cuda
