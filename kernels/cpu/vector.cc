#include "kernels/cpu/vector.h"

namespace hadal {

const VectorKernels& VectorKernelsFor(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable: return kVectorPortable;
    case CpuIsa::kAvx2: return kVectorAvx2;
    case CpuIsa::kAvx512:
    case CpuIsa::kAvx512Bf16:
    case CpuIsa::kAmx: return kVectorAvx512;
  }
  return kVectorPortable;
}

}  // namespace hadal
