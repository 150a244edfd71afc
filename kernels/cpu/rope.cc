#include "kernels/cpu/rope.h"

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector.h"

namespace hadal {

void Rope(const RopeParams& p, CpuContext& context) {
  const int64_t grain = RowGrain(int64_t{p.heads} * p.rope_dim * 4);
  context.pool->ParallelFor(p.tokens, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      if (p.positions[t] < 0) continue;
      const float* cos_sin = p.cos_sin + int64_t{p.positions[t]} * p.rope_dim;
      for (int h = 0; h < p.heads; ++h) {
        float* head = p.x + t * p.x_stride + h * p.head_stride;
        RotatePairs(head, cos_sin, p.rope_dim, head);
      }
    }
  });
}

void MlaInput(const MlaInputParams& p, CpuContext& context) {
  Rope({.x = static_cast<float*>(p.q_rope), .x_stride = p.q_rope_stride,
        .head_stride = p.q_rope_head_stride, .heads = p.heads, .rope_dim = p.rope_dim,
        .positions = p.positions, .cos_sin = p.cos_sin, .tokens = p.tokens}, context);
  StoreLatent(p, context);
}

}  // namespace hadal
