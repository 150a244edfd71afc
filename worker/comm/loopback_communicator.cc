#include "worker/comm/loopback_communicator.h"

#include <algorithm>

#include "common/check.h"

namespace hadal {
namespace {

// A copy is cut into rows of so many bytes at least, so that many cores of a device share it.
constexpr int64_t kMinRow = int64_t{16} << 10;
constexpr int kMaxRows = 1024;
constexpr int64_t kAlign = 16;

const uint8_t* Bytes(const void* data) { return static_cast<const uint8_t*>(data); }
uint8_t* Bytes(void* data) { return static_cast<uint8_t*>(data); }

}  // namespace

// In one call, since each is a launch.
void LoopbackCommunicator::CopyBytes(const void* from, void* to, int64_t bytes) {
  int rows = 1;
  while (rows < kMaxRows && bytes % (2 * rows * kAlign) == 0 && bytes / (2 * rows) >= kMinRow) rows *= 2;
  if (bytes > 0) copy_(from, bytes / rows, to, bytes / rows, rows, bytes / rows);
}

void LoopbackCommunicator::AllReduceSum(void* data, int64_t count, DType dtype) {
  if (size_ > 1) CopyBytes(data, data, count * DTypeSize(dtype));
}

// All pieces are read and written once, where they are, as they would be on their way round the ranks.
void LoopbackCommunicator::ReduceScatterSum(const void* send, void* recv, int64_t count, DType dtype) {
  const int64_t bytes = count * DTypeSize(dtype);
  if (size_ > 1) CopyBytes(send, const_cast<void*>(send), size_ * bytes);
  CopyBytes(Bytes(send) + rank_ * bytes, recv, bytes);
}

void LoopbackCommunicator::AllGather(const void* send, void* recv, int64_t bytes) {
  if (bytes > 0) copy_(send, 0, recv, bytes, size_, bytes);
}

void LoopbackCommunicator::AllGatherEach(std::span<const Gather> arrays) {
  const uint64_t call = gathers_++;
  for (size_t i = 0; i < arrays.size(); ++i) {
    const auto& [send, recv, bytes] = arrays[i];
    if (i != others_.array || others_.draws.empty()) {
      AllGather(send, recv, bytes);
      continue;
    }
    HADAL_CHECK(bytes <= others_.stride, "{} bytes of each rank, {} were drawn", bytes, others_.stride);
    if (bytes == 0) continue;
    copy_(others_.draws[call % others_.draws.size()], others_.stride, recv, bytes, size_, bytes);
    copy_(send, 0, Bytes(recv) + rank_ * bytes, 0, 1, bytes);
  }
}

void LoopbackCommunicator::AllGatherV(const void* send, void* recv,
                                      std::span<const int64_t> recv_bytes) {
  const int64_t own = recv_bytes[rank_];
  if (std::all_of(recv_bytes.begin(), recv_bytes.end(), [&](int64_t b) { return b == own; })) {
    return AllGather(send, recv, own);
  }
  uint8_t* to = Bytes(recv);
  for (int64_t bytes : recv_bytes) {
    HADAL_CHECK(own > 0 || bytes == 0);
    for (int64_t piece; bytes > 0; bytes -= piece, to += piece) {
      piece = std::min(bytes, own);
      CopyBytes(send, to, piece);
    }
  }
}

// As if every rank sent what this one does.
void LoopbackCommunicator::AllToAllV(const void* send, std::span<const int64_t> send_bytes, void* recv,
                                     std::span<const int64_t> recv_bytes) {
  int64_t offset = 0;
  for (int r = 0; r < size_; ++r) {
    HADAL_CHECK(send_bytes[r] == recv_bytes[r], "rank {} gets {} bytes and sends {}", r, send_bytes[r],
                recv_bytes[r]);
    offset += send_bytes[r];
  }
  CopyBytes(send, recv, offset);
}

void LoopbackCommunicator::Broadcast(void* data, int64_t bytes, int) {
  if (size_ > 1) CopyBytes(data, data, bytes);
}

}  // namespace hadal
