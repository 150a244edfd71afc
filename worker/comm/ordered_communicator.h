#pragma once

#include <vector>

#include "common/layout.h"
#include "worker/comm/communicator.h"

namespace hadal {

// Builds every collective on one exchange of bytes between all pairs of ranks, and sums in ascending
// rank order on the receiving side.
class OrderedCommunicator : public HostCommunicator {
 public:
  void AllReduceSum(void* data, int64_t count, DType dtype) final;
  void ReduceScatterSum(const void* send, void* recv, int64_t count, DType dtype) final;
  void AllGather(const void* send, void* recv, int64_t bytes) final;
  void AllGatherEach(std::span<const Gather> arrays) final;
  void AllGatherV(const void* send, void* recv, std::span<const int64_t> recv_bytes) final;
  void AllToAllV(const void* send, std::span<const int64_t> send_bytes, void* recv,
                 std::span<const int64_t> recv_bytes) final;
  void Broadcast(void* data, int64_t bytes, int root) final;
  void Barrier() final;

 protected:
  // One peer's part of an exchange. The entry of the own rank is ignored.
  struct Part {
    const uint8_t* send = nullptr;
    int64_t send_bytes = 0;
    uint8_t* recv = nullptr;
    int64_t recv_bytes = 0;
  };
  // Sends parts[r].send to rank r and fills parts[r].recv from it, for every other rank. Every rank
  // calls it with matching sizes; receive buffers overlap no send buffer. Throws CommError.
  virtual void Exchange(std::span<const Part> parts) = 0;

 private:
  void ReduceSmall(float* data, int64_t count);
  void ReduceLarge(float* data, int64_t count);
  // own = the sum over ranks of pieces[rank()], where all ranks have the same `pieces` of `data`.
  void SumOwnPiece(const float* data, std::span<const Range> pieces, float* own);
  std::vector<Part>& ClearedParts();

  std::vector<Part> parts_;      // [size]
  std::vector<float> scratch_;
  std::vector<int64_t> bytes_;   // [size]
};

}  // namespace hadal
