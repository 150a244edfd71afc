#pragma once

#include "kernels/cuda/cuda_context.h"

namespace hadal::bench {

// The two products of routed experts beside CUTLASS's grouped ones: V2-Lite and one of 8 ranks of
// 671B, bf16 and FP8. Prints lines.
void CompareExperts(CudaContext& context);

}  // namespace hadal::bench
