#include <cmath>
#include <cstring>

#include "kernels/cpu/attention_cache.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rope.h"

namespace hadal {

void StoreLatent(const MlaInputParams& p, CpuContext& context) {
  HADAL_CHECK(p.cache_dtype != DType::kF8E4M3, "the latent cache is bf16 or f32");
  const VectorKernels& kernels = VectorKernelsFor(context.isa);
  const auto* kv_a = static_cast<const float*>(p.kv_a);
  const int64_t dim = p.latent_rank + p.rope_dim;
  context.pool->ParallelFor(
      p.tokens, RowGrain(dim * 4), [&](int64_t begin, int64_t end, int thread) {
        ScratchArena& arena = context.scratch[static_cast<size_t>(thread)];
        ScratchArena::Scope scope(arena);
        float* row = arena.Allocate<float>(dim);
        for (int64_t t = begin; t < end; ++t) {
          if (p.positions[t] < 0) continue;
          std::memcpy(row, kv_a + t * p.kv_a_stride, static_cast<size_t>(dim) * sizeof(float));
          const float square = kernels.add_square(row, nullptr, p.latent_rank);
          const float factor = 1.0f / std::sqrt(square / static_cast<float>(p.latent_rank) + p.eps);
          kernels.scale_by(row, p.weight, factor, p.latent_rank, row);
          RotatePairs(row + p.latent_rank, p.cos_sin + int64_t{p.positions[t]} * p.rope_dim,
                      p.rope_dim, row + p.latent_rank);
          if (p.cache_dtype == DType::kF32) {
            std::memcpy(static_cast<float*>(p.cache) + p.cache_rows[t] * dim, row,
                        static_cast<size_t>(dim) * sizeof(float));
          } else {
            auto* out = static_cast<bf16_t*>(p.cache) + p.cache_rows[t] * dim;
            for (int64_t i = 0; i < dim; ++i) out[i] = FloatToBf16(row[i]);
          }
        }
      });
}

void LatentCache::ReadTile(const int32_t* blocks, int64_t first, int64_t keys, float* out,
                           int64_t stride) const {
  const int64_t row = int64_t{blocks[first / kBlockSize]} * kBlockSize + first % kBlockSize;
  for (int64_t j = 0; j < keys; ++j, out += stride) {
    if (dtype == DType::kF32) {
      std::memcpy(out, static_cast<const float*>(data) + (row + j) * dim,
                  static_cast<size_t>(dim) * sizeof(float));
    } else {
      kernels.widen(static_cast<const bf16_t*>(data) + (row + j) * dim, dim, out);
    }
    std::memset(out + dim, 0, static_cast<size_t>(stride - dim) * sizeof(float));
  }
}

}  // namespace hadal
