#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/comm/communicator.h"

namespace hadal {

// Stands in for the other ranks when one is timed alone: every collective moves within this rank's
// memory what a real one would read and write there, and returns what is finite and WRONG: what others
// would have sent is a copy of this rank's own part, and sums have that part alone. Takes whatever
// memory `copy` does, and calls take their place where those of `copy` do; so they may be captured.
class LoopbackCommunicator final : public HostCommunicator {
 public:
  // Row i of `from` to row i of `to`, which is it or does not overlap it. Strides are in bytes and may
  // be 0.
  using Copy = std::function<void(const void* from, int64_t from_stride, void* to, int64_t to_stride,
                                  int rows, int64_t bytes)>;
  LoopbackCommunicator(int rank, int size, Copy copy)
      : rank_(rank), size_(size), copy_(std::move(copy)) {}

  // For arrays that must differ between ranks: of an AllGatherEach(), the one at `array` brings of
  // other ranks what stands in draws[i], [size] rows of `stride` bytes. Calls take turns with the draws.
  struct Others {
    size_t array = 0;
    int64_t stride = 0;
    std::vector<const void*> draws;
  };
  void SetOthers(Others others) { others_ = std::move(others); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void AllReduceSum(void* data, int64_t count, DType dtype) override;
  void ReduceScatterSum(const void* send, void* recv, int64_t count, DType dtype) override;
  void AllGather(const void* send, void* recv, int64_t bytes) override;
  void AllGatherEach(std::span<const Gather> arrays) override;
  void AllGatherV(const void* send, void* recv, std::span<const int64_t> recv_bytes) override;
  void AllToAllV(const void* send, std::span<const int64_t> send_bytes, void* recv,
                 std::span<const int64_t> recv_bytes) override;
  void Broadcast(void* data, int64_t bytes, int root) override;
  void BroadcastMessage(std::vector<uint8_t>*, int) override {}
  void Barrier() override {}

 private:
  void CopyBytes(const void* from, void* to, int64_t bytes);

  const int rank_;
  const int size_;
  const Copy copy_;
  Others others_;
  uint64_t gathers_ = 0;  // calls of AllGatherEach
};

}  // namespace hadal
