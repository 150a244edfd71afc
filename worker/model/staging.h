#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/check.h"
#include "kernels/backend.h"

namespace hadal {

// Arrays that a step needs in backend memory, gathered on the host and brought there in one copy.
// An array lies where the sizes of those before it put it, so equal shapes give equal places.
class Staging {
 public:
  Staging(Backend* backend, int64_t capacity)
      : backend_(backend), device_(backend->Allocate(capacity)) {}

  // Of an array of `count` elements, padding included.
  template <typename T>
  static int64_t Bytes(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + kAlign - 1) / kAlign * kAlign;
  }

  void Clear() { staged_.clear(); }

  // The host's copy of a new array, to be filled before the next one is placed; `device` is where
  // Upload() brings it.
  template <typename T>
  T* Place(int64_t count, const T** device) {
    const auto at = static_cast<int64_t>(staged_.size());
    staged_.resize(at + Bytes<T>(count));
    HADAL_CHECK(static_cast<int64_t>(staged_.size()) <= device_->bytes);
    *device = reinterpret_cast<const T*>(device_->as<uint8_t>() + at);
    return reinterpret_cast<T*>(staged_.data() + at);
  }

  void Upload() {
    backend_->CopyToDevice(device_->data, staged_.data(), static_cast<int64_t>(staged_.size()));
  }

 private:
  static constexpr int64_t kAlign = 16;

  Backend* const backend_;
  std::unique_ptr<DeviceBuffer> device_;
  std::vector<uint8_t> staged_;
};

}  // namespace hadal
