#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/device/cuda_context.h"

namespace hadal::cuda {

// Experts, and the sums of their outputs. The ops of that name in kernels/backend.h, on
// context.stream, for all dtypes and shapes.
void Moe(const MoeParams& p, CudaContext& context);
void AddRows(const AddRowsParams& p, CudaContext& context);

// Upper bound of what these take from CudaContext::scratch.
int64_t MoeScratchBytes(const OpLimits& limits, DType act);

}  // namespace hadal::cuda
