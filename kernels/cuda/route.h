#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/cuda_context.h"

namespace hadal::cuda {

// Contract of Backend::NormRoute().
void NormRoute(const RmsNormParams& norm, const RouteParams& p, CudaContext& context);

// Bound of the scratch of Route().
int64_t RouteScratchBytes(const OpLimits& limits);

}  // namespace hadal::cuda
