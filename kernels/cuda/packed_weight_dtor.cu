#include "kernels/cuda/packed_weight.h"

namespace hadal {

CudaPackedWeight::~CudaPackedWeight() = default;

}  // namespace hadal
