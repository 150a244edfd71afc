#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector.h"

namespace hadal {

void SiluMul(const SiluMulParams& p, CpuContext& context) {
  const VectorKernels& kernels = VectorKernelsFor(context.isa);
  const auto* x = static_cast<const float*>(p.gate_up);
  auto* out = static_cast<float*>(p.out);
  context.pool->ParallelFor(p.rows, RowGrain(p.width * 2), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* gate = x + r * 2 * p.width;
      kernels.silu_mul(gate, gate + p.width, out + r * p.width, p.width);
    }
  });
}

void SiluMulSerial(const float* gate, const float* up, float* out, int64_t n, CpuIsa isa) {
  VectorKernelsFor(isa).silu_mul(gate, up, out, n);
}

}  // namespace hadal
