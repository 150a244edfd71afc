#pragma once

#include "kernels/cuda/device/cuda_context.h"
#include "kernels/cuda/weights/packed_weight.h"

namespace hadal::cuda {

// FP8 matrices first .. first + count of a stack in bf16 or float, [count * n, stride] at `out`.
void WidenF8(const CudaPackedWeight& w, int first, int count, DType type, void* out,
             CudaContext& context);

}  // namespace hadal::cuda
