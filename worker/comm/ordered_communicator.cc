#include "worker/comm/ordered_communicator.h"

#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "common/layout.h"

namespace hadal {
namespace {

// Up to this many floats every rank sends its whole buffer: one exchange instead of two.
constexpr int64_t kSmallReduce = 8192;

// out[i] = sum over r of parts[r * stride + i], r ascending.
void SumInRankOrder(const float* parts, int64_t stride, int ranks, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    float sum = parts[i];
    for (int r = 1; r < ranks; ++r) sum += parts[r * stride + i];
    out[i] = sum;
  }
}

}  // namespace

std::vector<OrderedCommunicator::Part>& OrderedCommunicator::ClearedParts() {
  parts_.assign(size(), Part{});
  return parts_;
}

void OrderedCommunicator::AllReduceSum(void* buffer, int64_t count, DType dtype) {
  if (size() == 1 || count == 0) return;
  HADAL_CHECK(dtype == DType::kF32, "host memory is summed as float");
  auto* data = static_cast<float*>(buffer);
  if (count <= kSmallReduce || size() == 2) {
    ReduceSmall(data, count);
  } else {
    ReduceLarge(data, count);
  }
}

void OrderedCommunicator::ReduceSmall(float* data, int64_t count) {
  scratch_.resize(count * size());
  AllGather(data, scratch_.data(), count * static_cast<int64_t>(sizeof(float)));
  SumInRankOrder(scratch_.data(), count, size(), count, data);
}

// Each rank sums one slice, then all gather the sums: 2 (size - 1) / size of the buffer travels.
void OrderedCommunicator::ReduceLarge(float* data, int64_t count) {
  std::vector<Range> slices;
  for (int r = 0; r < size(); ++r) slices.push_back(SplitRange(count, size(), r));
  const Range own = slices[rank()];
  SumOwnPiece(data, slices, data + own.begin);
  auto* bytes = reinterpret_cast<uint8_t*>(data);
  std::vector<Part>& parts = ClearedParts();
  for (int r = 0; r < size(); ++r) {
    parts[r] = {bytes + own.begin * 4, own.size() * 4, bytes + slices[r].begin * 4,
                slices[r].size() * 4};
  }
  Exchange(parts);
}

void OrderedCommunicator::ReduceScatterSum(const void* send, void* recv, int64_t count,
                                           DType dtype) {
  HADAL_CHECK(dtype == DType::kF32, "host memory is summed as float");
  std::vector<Range> pieces;
  for (int64_t r = 0; r < size(); ++r) pieces.push_back({r * count, (r + 1) * count});
  SumOwnPiece(static_cast<const float*>(send), pieces, static_cast<float*>(recv));
}

void OrderedCommunicator::SumOwnPiece(const float* data, std::span<const Range> pieces, float* own) {
  const Range& mine = pieces[rank()];
  scratch_.resize(mine.size() * size());
  std::vector<Part>& parts = ClearedParts();
  for (int r = 0; r < size(); ++r) {
    parts[r] = {reinterpret_cast<const uint8_t*>(data + pieces[r].begin), pieces[r].size() * 4,
                reinterpret_cast<uint8_t*>(scratch_.data() + r * mine.size()), mine.size() * 4};
  }
  std::copy_n(data + mine.begin, mine.size(), scratch_.data() + rank() * mine.size());
  Exchange(parts);
  SumInRankOrder(scratch_.data(), mine.size(), size(), mine.size(), own);
}

void OrderedCommunicator::AllGather(const void* send, void* recv, int64_t bytes) {
  bytes_.assign(size(), bytes);
  AllGatherV(send, recv, bytes_);
}

void OrderedCommunicator::AllGatherEach(std::span<const Gather> arrays) {
  for (const Gather& array : arrays) AllGather(array.send, array.recv, array.bytes);
}

void OrderedCommunicator::AllGatherV(const void* send, void* recv,
                                     std::span<const int64_t> recv_bytes) {
  HADAL_CHECK(static_cast<int>(recv_bytes.size()) == size());
  std::vector<Part>& parts = ClearedParts();
  auto* out = static_cast<uint8_t*>(recv);
  int64_t offset = 0;
  for (int r = 0; r < size(); ++r) {
    parts[r] = {static_cast<const uint8_t*>(send), recv_bytes[rank()], out + offset, recv_bytes[r]};
    offset += recv_bytes[r];
  }
  uint8_t* own = parts[rank()].recv;
  if (own != send && recv_bytes[rank()] > 0) std::memmove(own, send, recv_bytes[rank()]);
  Exchange(parts);
}

void OrderedCommunicator::AllToAllV(const void* send, std::span<const int64_t> send_bytes,
                                    void* recv, std::span<const int64_t> recv_bytes) {
  HADAL_CHECK(static_cast<int>(send_bytes.size()) == size() &&
              static_cast<int>(recv_bytes.size()) == size());
  HADAL_CHECK(send_bytes[rank()] == recv_bytes[rank()]);
  std::vector<Part>& parts = ClearedParts();
  int64_t send_offset = 0;
  int64_t recv_offset = 0;
  for (int r = 0; r < size(); ++r) {
    parts[r] = {static_cast<const uint8_t*>(send) + send_offset, send_bytes[r],
                static_cast<uint8_t*>(recv) + recv_offset, recv_bytes[r]};
    send_offset += send_bytes[r];
    recv_offset += recv_bytes[r];
  }
  const Part& own = parts[rank()];
  if (own.send_bytes > 0) std::memcpy(own.recv, own.send, own.send_bytes);
  Exchange(parts);
}

void OrderedCommunicator::Broadcast(void* data, int64_t bytes, int root) {
  if (size() == 1) return;
  std::vector<Part>& parts = ClearedParts();
  auto* buffer = static_cast<uint8_t*>(data);
  if (rank() == root) {
    for (Part& part : parts) part = {buffer, bytes, nullptr, 0};
  } else {
    parts[root] = {nullptr, 0, buffer, bytes};
  }
  Exchange(parts);
}

void OrderedCommunicator::Barrier() {
  uint8_t token = 0;
  std::vector<uint8_t> tokens(size());
  AllGather(&token, tokens.data(), 1);
}

}  // namespace hadal
