#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/device/cuda_context.h"

namespace hadal::cuda {

// Latent attention. The ops of that name in kernels/backend.h, on context.stream, for all
// dtypes and shapes.
void MlaInput(const MlaInputParams& p, CudaContext& context);
void MlaInputAndAbsorb(const MlaInputParams& input, const HeadMatMulParams& p,
                       CudaContext& context);
void MlaDecode(const MlaDecodeParams& p, CudaContext& context);
void MlaPrefill(const MlaPrefillParams& p, CudaContext& context);
void MlaPrefillAndMatMul(const MlaPrefillParams& p, const MatMulParams& out, CudaContext& context);

// Upper bound of what these take from CudaContext::scratch.
int64_t AttentionScratchBytes(const OpLimits& limits, DType act);

}  // namespace hadal::cuda
