#include <cstring>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector.h"

namespace hadal {

void MoeCombine(const MoeCombineParams& p, CpuContext& context) {
  const VectorKernels& kernels = VectorKernelsFor(context.isa);
  const auto* rows = static_cast<const float*>(p.row_out);
  auto* out = static_cast<float*>(p.out);
  const int64_t grain = RowGrain(p.dim * p.top_k);
  context.pool->ParallelFor(p.tokens, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* to = out + t * p.dim;
      bool accumulate = p.accumulate;
      for (int j = 0; j < p.top_k; ++j) {
        const int32_t row = p.row_of[t * p.top_k + j];
        if (row < 0) continue;
        kernels.add_scaled(rows + row * p.dim, p.weights[t * p.top_k + j], accumulate, p.dim, to);
        accumulate = true;
      }
      if (!accumulate) std::memset(to, 0, static_cast<size_t>(p.dim) * sizeof(float));
    }
  });
}

}  // namespace hadal
