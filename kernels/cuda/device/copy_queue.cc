#include "kernels/cuda/device/copy_queue.h"

#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "kernels/cuda/device/cuda_check.h"
#include "kernels/cuda/device/device_memory.h"

namespace hadal {

CopyQueue::CopyQueue(cudaStream_t stream)
    : stream_(stream), staging_(AllocatePinned(kSegmentBytes * kSegments)) {
  for (auto* events : {fetched_.data(), tickets_.data()}) {
    const int count = events == fetched_.data() ? kSegments : kTickets;
    for (int i = 0; i < count; ++i) {
      HADAL_CUDA(cudaEventCreateWithFlags(&events[i], cudaEventDisableTiming));
    }
  }
}

CopyQueue::~CopyQueue() {
  cudaStreamSynchronize(stream_);
  for (cudaEvent_t event : fetched_) cudaEventDestroy(event);
  for (cudaEvent_t event : tickets_) cudaEventDestroy(event);
}

void CopyQueue::NextSegment() {
  HADAL_CUDA(cudaEventRecord(fetched_[segment_], stream_));
  segment_ = (segment_ + 1) % kSegments;
  used_ = 0;
  HADAL_CUDA(cudaEventSynchronize(fetched_[segment_]));  // at once where it was never recorded
}

void CopyQueue::ToDevice(void* device, const void* host, int64_t bytes) {
  auto* to = static_cast<char*>(device);
  const auto* from = static_cast<const char*>(host);
  while (bytes > 0) {
    if (used_ == kSegmentBytes) NextSegment();
    const int64_t piece = std::min(bytes, kSegmentBytes - used_);
    char* staged = staging_->as<char>() + segment_ * kSegmentBytes + used_;
    std::memcpy(staged, from, static_cast<size_t>(piece));
    HADAL_CUDA(cudaMemcpyAsync(to, staged, static_cast<size_t>(piece), cudaMemcpyHostToDevice,
                               stream_));
    to += piece;
    from += piece;
    bytes -= piece;
    used_ += std::min((piece + 15) / 16 * 16, kSegmentBytes - used_);
  }
}

void CopyQueue::ToHost(void* host, const void* device, int64_t bytes) {
  if (bytes > 0) {
    HADAL_CUDA(cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                               stream_));
  }
  HADAL_CUDA(cudaStreamSynchronize(stream_));
}

uint64_t CopyQueue::StartToHost(void* host, const void* device, int64_t bytes) {
  const uint64_t ticket = last_ticket_ + 1;
  // An old ticket without an event counts as done, so it has to be.
  HADAL_CUDA(cudaEventSynchronize(event_of(ticket)));
  if (bytes > 0) {
    HADAL_CUDA(cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                               stream_));
  }
  HADAL_CUDA(cudaEventRecord(event_of(ticket), stream_));
  return last_ticket_ = ticket;
}

bool CopyQueue::Done(uint64_t ticket) const {
  HADAL_CHECK(ticket >= 1 && ticket <= last_ticket_);
  if (ticket + kTickets <= last_ticket_) return true;
  const cudaError_t error = cudaEventQuery(event_of(ticket));
  if (error == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  HADAL_CUDA(error);
  return true;
}

void CopyQueue::Await(uint64_t ticket) const {
  HADAL_CHECK(ticket >= 1 && ticket <= last_ticket_);
  if (ticket + kTickets > last_ticket_) HADAL_CUDA(cudaEventSynchronize(event_of(ticket)));
}

}  // namespace hadal
