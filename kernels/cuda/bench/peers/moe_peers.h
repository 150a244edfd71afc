#pragma once

#include "common/dtype.h"
#include "kernels/cuda/device/cuda_context.h"

namespace hadal::bench {

// The two products of routed experts beside CUTLASS's grouped ones: V2-Lite and one of 8 ranks of
// 671B. Prints lines.
void CompareExperts(DType dtype, CudaContext& context);

}  // namespace hadal::bench
