#pragma once

#include <string>

#include "common/status.h"
#include "kernels/cuda/device/cuda_context.h"

namespace hadal {

// Fills device, sm_count and arch for one of the visible devices, makes it the calling thread's,
// and returns its name ("NVIDIA H100 80GB HBM3"). Refusals: see MakeCudaBackend.
StatusOr<std::string> OpenCudaDevice(int device, CudaContext* context);

// Of one of the visible devices.
std::string DeviceUuid(int device);

}  // namespace hadal
