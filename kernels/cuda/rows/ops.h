#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/device/cuda_context.h"

namespace hadal::cuda {

// Embedding, norms, and rows that only move. The ops of that name in kernels/backend.h, on
// context.stream, for all dtypes and shapes.
void Embed(const EmbedParams& p, CudaContext& context);
void RmsNorm(const RmsNormParams& p, CudaContext& context);
void CopyRows(const CopyRowsParams& p, CudaContext& context);
void StoreTokens(const StoreTokensParams& p, CudaContext& context);

}  // namespace hadal::cuda
