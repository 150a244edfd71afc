#pragma once

#include <memory>
#include <string>

#include "common/dtype.h"
#include "common/status.h"
#include "kernels/backend.h"

namespace hadal {

struct CudaBackendOptions {
  int device = 0;                  // index among the visible devices
  DType activation = DType::kBF16; // kF32 for F32 checkpoints
};

// Devices that this process can use; 0 also without a driver.
int CudaDeviceCount();

// FAILED_PRECONDITION says what is missing: no device, a driver too old, an architecture that this
// binary was not compiled for.
StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& options);

}  // namespace hadal
