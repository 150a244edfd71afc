#pragma once

#include <cstdint>

#include "common/check.h"
#include "common/dtype.h"
#include "kernels/cpu/vector.h"

namespace hadal {

// Reads the paged latent cache as float.
struct LatentCache {
  const void* data = nullptr;  // [blocks * kBlockSize, dim] of dtype
  DType dtype = DType::kBF16;  // kBF16 or kF32
  int64_t dim = 0;             // latent_rank + rope_dim
  const VectorKernels& kernels;

  // Rows of the keys at positions first .. first + keys of a sequence, followed by zeros up to
  // `stride` floats. REQUIRES: the keys lie in one block.
  void ReadTile(const int32_t* blocks, int64_t first, int64_t keys, float* out,
                int64_t stride) const;
};

}  // namespace hadal
