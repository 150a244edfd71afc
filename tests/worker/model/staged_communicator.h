#pragma once

#include <cstring>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "common/dtype.h"
#include "kernels/backend.h"
#include "worker/comm/communicator.h"

namespace hadal::testing {

// Collectives over a device's memory by way of the host's: ranks that are threads of one process can
// then share one card.
class StagedCommunicator final : public Communicator {
 public:
  // `backend` outlives this.
  StagedCommunicator(std::shared_ptr<HostCommunicator> host, Backend* backend)
      : host_(std::move(host)), backend_(backend) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  void AllReduceSum(void* data, int64_t count, DType dtype) override {
    std::vector<float> sums(count);
    if (dtype == DType::kF32) {
      backend_->CopyToHost(sums.data(), data, count * 4);
      host_->AllReduceSum(sums.data(), count, DType::kF32);
      backend_->CopyToDevice(data, sums.data(), count * 4);
      return;
    }
    std::vector<bf16_t> halves(count);
    backend_->CopyToHost(halves.data(), data, count * 2);
    for (int64_t i = 0; i < count; ++i) sums[i] = Bf16ToFloat(halves[i]);
    host_->AllReduceSum(sums.data(), count, DType::kF32);
    for (int64_t i = 0; i < count; ++i) halves[i] = FloatToBf16(sums[i]);
    backend_->CopyToDevice(data, halves.data(), count * 2);
  }

  void AllGather(const void* send, void* recv, int64_t bytes) override {
    AllGatherV(send, recv, std::vector<int64_t>(size(), bytes));
  }

  void AllGatherV(const void* send, void* recv, std::span<const int64_t> recv_bytes) override {
    const std::vector<uint8_t> out = Fetch(send, recv_bytes[rank()]);
    std::vector<uint8_t> in(Sum(recv_bytes));
    host_->AllGatherV(out.data(), in.data(), recv_bytes);
    backend_->CopyToDevice(recv, in.data(), static_cast<int64_t>(in.size()));
  }

  void AllToAllV(const void* send, std::span<const int64_t> send_bytes, void* recv,
                 std::span<const int64_t> recv_bytes) override {
    const std::vector<uint8_t> out = Fetch(send, Sum(send_bytes));
    std::vector<uint8_t> in(Sum(recv_bytes));
    host_->AllToAllV(out.data(), send_bytes, in.data(), recv_bytes);
    backend_->CopyToDevice(recv, in.data(), static_cast<int64_t>(in.size()));
  }

  void Broadcast(void* data, int64_t bytes, int root) override {
    std::vector<uint8_t> buffer = Fetch(data, bytes);
    host_->Broadcast(buffer.data(), bytes, root);
    backend_->CopyToDevice(data, buffer.data(), bytes);
  }

 private:
  static int64_t Sum(std::span<const int64_t> values) {
    return std::accumulate(values.begin(), values.end(), int64_t{0});
  }
  std::vector<uint8_t> Fetch(const void* device, int64_t bytes) {
    std::vector<uint8_t> out(bytes);
    backend_->CopyToHost(out.data(), device, bytes);
    return out;
  }

  const std::shared_ptr<HostCommunicator> host_;
  Backend* const backend_;
};

}  // namespace hadal::testing
