#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/device/cuda_context.h"

namespace hadal::cuda {

// The choice of experts. The ops of that name in kernels/backend.h, on context.stream, for all
// dtypes and shapes.
void Route(const RouteParams& p, CudaContext& context);
void NormRoute(const RmsNormParams& norm, const RouteParams& p, CudaContext& context);

// Upper bound of what these take from CudaContext::scratch.
int64_t RouteScratchBytes(const OpLimits& limits);

}  // namespace hadal::cuda
