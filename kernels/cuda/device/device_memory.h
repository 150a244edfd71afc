#pragma once

#include <cstdint>
#include <memory>

#include "kernels/backend.h"

namespace hadal {

// Both throw std::bad_alloc, naming the bytes in the log. Pinned memory is page-locked.
std::unique_ptr<DeviceBuffer> AllocateDevice(int64_t bytes);
std::unique_ptr<HostBuffer> AllocatePinned(int64_t bytes);

// What is free on the current device.
int64_t FreeDeviceBytes();

}  // namespace hadal
