#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "kernels/backend.h"

namespace hadal {

// The memory that one backend takes from a device.
class DeviceMemory {
 public:
  // Throws std::bad_alloc, naming the bytes in the log. The buffer may outlive this object.
  std::unique_ptr<DeviceBuffer> Allocate(int64_t bytes);
  // Adds what others took on behalf of the backend and keep until it ends.
  void Count(int64_t bytes) { *used_ += bytes; }
  // What is free now and, of `ranks` equal shares of the device, left in ours.
  int64_t Available(int ranks) const;

 private:
  std::shared_ptr<std::atomic<int64_t>> used_ = std::make_shared<std::atomic<int64_t>>(0);
};

// Page-locked. Throws std::bad_alloc, naming the bytes in the log.
std::unique_ptr<HostBuffer> AllocatePinned(int64_t bytes);

}  // namespace hadal
