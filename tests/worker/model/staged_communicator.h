#pragma once

#include <algorithm>
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
    std::vector<float> sums = FetchFloats(data, count, dtype);
    host_->AllReduceSum(sums.data(), count, DType::kF32);
    StoreFloats(sums, data, dtype);
  }

  void ReduceScatterSum(const void* send, void* recv, int64_t count, DType dtype) override {
    std::vector<float> own(count);
    const std::vector<float> all = FetchFloats(send, count * size(), dtype);
    host_->ReduceScatterSum(all.data(), own.data(), count, DType::kF32);
    StoreFloats(own, recv, dtype);
  }

  void AllGather(const void* send, void* recv, int64_t bytes) override {
    AllGatherV(send, recv, std::vector<int64_t>(size(), bytes));
  }

  void AllGatherEach(std::span<const Gather> arrays) override {
    for (const auto& [send, recv, bytes] : arrays) AllGather(send, recv, bytes);
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
  std::vector<float> FetchFloats(const void* device, int64_t count, DType dtype) {
    std::vector<float> values(count);
    if (dtype == DType::kF32) {
      backend_->CopyToHost(values.data(), device, count * 4);
      return values;
    }
    std::vector<bf16_t> halves(count);
    backend_->CopyToHost(halves.data(), device, count * 2);
    std::transform(halves.begin(), halves.end(), values.begin(), Bf16ToFloat);
    return values;
  }
  void StoreFloats(const std::vector<float>& values, void* device, DType dtype) {
    const auto count = static_cast<int64_t>(values.size());
    if (dtype == DType::kF32) return backend_->CopyToDevice(device, values.data(), count * 4);
    std::vector<bf16_t> halves(count);
    std::transform(values.begin(), values.end(), halves.begin(), FloatToBf16);
    backend_->CopyToDevice(device, halves.data(), count * 2);
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
