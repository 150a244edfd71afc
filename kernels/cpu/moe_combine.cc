#include <cstring>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector.h"

namespace hadal {

void MoeCombine(const MoeCombineParams& p, CpuContext& context) {
  const VectorKernels& kernels = VectorKernelsFor(context.isa);
  const int64_t grain = RowGrain(p.dim * p.top_k);
  context.pool->ParallelFor(p.tokens, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* to = p.out + t * p.dim;
      bool accumulate = p.accumulate;
      for (int j = 0; j < p.top_k; ++j) {
        const int32_t row = p.row_of[t * p.top_k + j];
        if (row < 0) continue;
        const float weight = p.weights == nullptr ? 1.0f : p.weights[t * p.top_k + j];
        kernels.add_scaled(p.row_out + row * p.dim, weight, accumulate, p.dim, to);
        accumulate = true;
      }
      if (!accumulate) std::memset(to, 0, static_cast<size_t>(p.dim) * sizeof(float));
    }
  });
}

void AddRows(const AddRowsParams& p, CpuContext& context) {
  MoeCombine({.row_out = static_cast<const float*>(p.rows), .row_of = p.row_of,
              .out = static_cast<float*>(p.out), .accumulate = p.accumulate, .tokens = p.tokens,
              .top_k = p.width, .dim = p.dim}, context);
}

}  // namespace hadal
