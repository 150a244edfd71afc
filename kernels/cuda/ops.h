#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/cuda_context.h"

namespace hadal {

// The ops of kernels/backend.h on a device, one free function each. Whatever the dtypes and shapes,
// there is a general path; released shapes take faster ones. All launch on context.stream.
namespace cuda {

void Embed(const EmbedParams& p, CudaContext& context);
void RmsNorm(const RmsNormParams& p, CudaContext& context);
void MatMul(const MatMulParams& p, CudaContext& context);
void NormMatMul(const RmsNormParams& norm, const MatMulParams& p, CudaContext& context);
void HeadMatMul(const HeadMatMulParams& p, CudaContext& context);
void MlaInput(const MlaInputParams& p, CudaContext& context);
void MlaInputAndAbsorb(const MlaInputParams& input, const HeadMatMulParams& p,
                       CudaContext& context);
void MlaDecode(const MlaDecodeParams& p, CudaContext& context);
void MlaPrefill(const MlaPrefillParams& p, CudaContext& context);
void MlaPrefillAndMatMul(const MlaPrefillParams& p, const MatMulParams& out, CudaContext& context);
void Mlp(const MlpParams& p, CudaContext& context);
void Route(const RouteParams& p, CudaContext& context);
void Moe(const MoeParams& p, CudaContext& context);
void AddRows(const AddRowsParams& p, CudaContext& context);
void CopyRows(const CopyRowsParams& p, CudaContext& context);
void Sample(const SampleParams& p, CudaContext& context);
void StoreTokens(const StoreTokensParams& p, CudaContext& context);
void TokenLogprobs(const TokenLogprobParams& p, CudaContext& context);

// Upper bounds of the scratch that one op takes from CudaContext::scratch.
int64_t MatMulScratchBytes(const OpLimits& limits, DType act);     // MatMul, HeadMatMul, Mlp
int64_t AttentionScratchBytes(const OpLimits& limits, DType act);  // MlaDecode, MlaPrefill
int64_t MoeScratchBytes(const OpLimits& limits, DType act);        // Route, Moe
int64_t SampleScratchBytes(const OpLimits& limits);                // Sample, TokenLogprobs

}  // namespace cuda
}  // namespace hadal
