#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/device/cuda_context.h"

namespace hadal::cuda {

// Dense products. The ops of that name in kernels/backend.h, on context.stream, for all
// dtypes and shapes.
void MatMul(const MatMulParams& p, CudaContext& context);
void NormMatMul(const RmsNormParams& norm, const MatMulParams& p, CudaContext& context);
void HeadMatMul(const HeadMatMulParams& p, CudaContext& context);
void Mlp(const MlpParams& p, CudaContext& context);

// Upper bound of what these take from CudaContext::scratch.
int64_t MatMulScratchBytes(const OpLimits& limits, DType act);

}  // namespace hadal::cuda
