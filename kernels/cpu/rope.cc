#include "kernels/cpu/rope.h"

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector.h"

namespace hadal {

void Rope(const RopeParams& p, CpuContext& context) {
  auto* x = static_cast<float*>(p.x);
  const int64_t grain = RowGrain(int64_t{p.heads} * p.rope_dim * 4);
  context.pool->ParallelFor(p.tokens, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float* cos_sin = p.cos_sin + int64_t{p.positions[t]} * p.rope_dim;
      for (int h = 0; h < p.heads; ++h) {
        float* head = x + t * p.x_stride + h * p.head_stride;
        RotatePairs(head, cos_sin, p.rope_dim, head);
      }
    }
  });
}

}  // namespace hadal
