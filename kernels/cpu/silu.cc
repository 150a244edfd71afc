#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector.h"

namespace hadal {

void SiluMulSerial(const float* gate, const float* up, float* out, int64_t n, CpuIsa isa) {
  VectorKernelsFor(isa).silu_mul(gate, up, out, n);
}

}  // namespace hadal
