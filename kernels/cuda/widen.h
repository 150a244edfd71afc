#pragma once

#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/packed_weight.h"

namespace hadal::cuda {

// The FP8 matrices first .. first + count of a stack as activations, [count * n, stride] at `out`.
void WidenF8(const CudaPackedWeight& w, int first, int count, void* out, CudaContext& context);

}  // namespace hadal::cuda
