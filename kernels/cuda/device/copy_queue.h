#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <memory>

#include "kernels/backend.h"

namespace hadal {

// Copies between host and device in the order of one stream. One thread.
class CopyQueue {
 public:
  // The stream must outlive this object.
  explicit CopyQueue(cudaStream_t stream);
  ~CopyQueue();
  CopyQueue(const CopyQueue&) = delete;
  CopyQueue& operator=(const CopyQueue&) = delete;

  // `host` may be reused on return: it has been copied to page-locked memory, piece by piece, from
  // where the device fetches it. Waits only when kSegments segments are on their way.
  void ToDevice(void* device, const void* host, int64_t bytes);
  // Waits for the stream.
  void ToHost(void* host, const void* device, int64_t bytes);

  // As Backend's.
  uint64_t StartToHost(void* host, const void* device, int64_t bytes);
  bool Done(uint64_t ticket) const;
  void Await(uint64_t ticket) const;

 private:
  static constexpr int64_t kSegmentBytes = int64_t{2} << 20;
  static constexpr int kSegments = 8;
  static constexpr int kTickets = 64;

  // To the next segment, once the device has fetched what was in it.
  void NextSegment();
  cudaEvent_t event_of(uint64_t ticket) const { return tickets_[ticket % kTickets]; }

  cudaStream_t stream_;
  std::unique_ptr<HostBuffer> staging_;
  std::array<cudaEvent_t, kSegments> fetched_{};  // after the last copy out of a segment
  int segment_ = 0;
  int64_t used_ = 0;                              // bytes of the current segment
  std::array<cudaEvent_t, kTickets> tickets_{};   // of the last kTickets tickets
  uint64_t last_ticket_ = 0;
};

}  // namespace hadal
