#include "kernels/cuda/device/cuda_check.h"

#include <fmt/format.h>

namespace hadal {

void ThrowCudaError(const char* call, const char* file, int line, const char* what) {
  throw CudaError(fmt::format("{}:{}: {}: {}", file, line, call, what));
}

}  // namespace hadal
