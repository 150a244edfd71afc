#include <algorithm>
#include <cmath>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector.h"

namespace hadal {

void RmsNorm(const RmsNormParams& p, CpuContext& context) {
  const VectorKernels& kernels = VectorKernelsFor(context.isa);
  auto* x = static_cast<float*>(p.residual);
  const auto* from = static_cast<const float*>(p.from);
  const auto* delta = static_cast<const float*>(p.delta);
  auto* out = static_cast<float*>(p.out);
  context.pool->ParallelFor(p.tokens, RowGrain(p.dim), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = x + t * p.x_stride;
      if (from != nullptr) std::copy_n(from + t * p.x_stride, p.dim, row);
      const float square =
          kernels.add_square(row, delta == nullptr ? nullptr : delta + t * p.dim, p.dim);
      if (out == nullptr) continue;
      const float factor = 1.0f / std::sqrt(square / static_cast<float>(p.dim) + p.eps);
      kernels.scale_by(row, p.weight, factor, p.dim, out + t * p.out_stride);
    }
  });
}

}  // namespace hadal
