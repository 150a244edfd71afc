#pragma once

#include "kernels/cuda/experts/ops.h"

namespace hadal::cuda {

enum class MoePath {
  kAuto,
  kGeneral,  // any shape and dtype
  kFew,      // at most 8 tokens, bf16 activations
  kStream,   // few rows per expert, bf16 activations
  kTile,     // many rows per expert, bf16 activations
};

// Moe() by the given path. REQUIRES: MoePathFits().
void RunMoe(const MoeParams& p, MoePath path, CudaContext& context);
bool MoePathFits(const MoeParams& p, MoePath path, const CudaContext& context);

}  // namespace hadal::cuda
