#include <cstring>

#include "kernels/cpu/ops.h"

namespace hadal {

void Embed(const EmbedParams& p, CpuContext& context) {
  auto* out = static_cast<float*>(p.out);
  context.pool->ParallelFor(p.tokens, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = out + t * p.dim;
      const int64_t id = p.ids[t] >= 0 ? p.ids[t] : p.last_tokens[-1 - p.ids[t]];
      if (id < p.vocab_begin || id >= p.vocab_end) {
        std::memset(row, 0, static_cast<size_t>(p.dim) * sizeof(float));
      } else if (p.table_dtype == DType::kF32) {
        const float* src = static_cast<const float*>(p.table) + (id - p.vocab_begin) * p.dim;
        std::memcpy(row, src, static_cast<size_t>(p.dim) * sizeof(float));
      } else {
        const bf16_t* src = static_cast<const bf16_t*>(p.table) + (id - p.vocab_begin) * p.dim;
        for (int64_t i = 0; i < p.dim; ++i) row[i] = Bf16ToFloat(src[i]);
      }
    }
  });
}

}  // namespace hadal
