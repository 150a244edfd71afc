#pragma once

#include "kernels/cuda/cuda_context.h"

namespace hadal::cuda {

struct FewExpertsArgs;

// MoeFew() of FP8 weights on Hopper. count: experts of a matrix; rows: bound of those chosen.
bool FewF8Fits(const FewExpertsArgs& a);
void LaunchFewF8Experts(const FewExpertsArgs& args, int count, int rows, CudaContext& context);

}  // namespace hadal::cuda
