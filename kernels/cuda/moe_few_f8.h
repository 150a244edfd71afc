#pragma once

#include "kernels/cuda/cuda_context.h"

namespace hadal::cuda {

struct FewArgs;

// MoeFew() of FP8 weights on Hopper. count: experts of a matrix; rows: bound of those chosen.
bool FewF8Fits(const FewArgs& a);
void LaunchFewF8Experts(const FewArgs& args, int count, int rows, CudaContext& context);

}  // namespace hadal::cuda
