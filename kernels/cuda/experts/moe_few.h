#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/device/cuda_context.h"

namespace hadal::cuda {

// Moe() of at most 8 tokens in two launches: every weight is read once.
bool MoeFewFits(const MoeParams& p, const CudaContext& context);
void MoeFew(const MoeParams& p, CudaContext& context);

}  // namespace hadal::cuda
