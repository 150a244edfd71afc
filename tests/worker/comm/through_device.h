#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>

#include "worker/comm/communicator.h"

namespace hadal::testing {

inline void Cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Device memory for one call, unaligned by 4 bytes, with a guard behind it.
class Bytes {
 public:
  explicit Bytes(int64_t bytes) : bytes_(bytes) {
    Cuda(cudaMalloc(&data_, static_cast<size_t>(bytes) + 64));
    // On a stream of its own, which the communicator's does not wait for.
    Cuda(cudaMemset(data_, 0xa5, static_cast<size_t>(bytes) + 64));
    Cuda(cudaDeviceSynchronize());
  }
  Bytes(const void* host, int64_t bytes) : Bytes(bytes) {
    if (bytes > 0) Cuda(cudaMemcpy(at(), host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice));
    Cuda(cudaDeviceSynchronize());
  }
  ~Bytes() { cudaFree(data_); }
  Bytes(const Bytes&) = delete;
  uint8_t* at() const { return static_cast<uint8_t*>(data_) + 4; }
  void Read(void* host) const {
    if (bytes_ > 0) Cuda(cudaMemcpy(host, at(), static_cast<size_t>(bytes_), cudaMemcpyDeviceToHost));
    uint8_t guard[60];
    Cuda(cudaMemcpy(guard, at() + bytes_, sizeof(guard), cudaMemcpyDeviceToHost));
    for (const uint8_t byte : guard) {
      if (byte != 0xa5) throw std::runtime_error("wrote behind a buffer");
    }
  }

 private:
  void* data_ = nullptr;
  int64_t bytes_;
};

// A device communicator as the cases want it: operands are host memory.
class ThroughDevice final : public HostCommunicator {
 public:
  ThroughDevice(Communicator& device, HostCommunicator& host, CollectiveWatch& watch, cudaStream_t stream)
      : device_(device), host_(host), watch_(watch), stream_(stream) {}

  int rank() const override { return device_.rank(); }
  int size() const override { return device_.size(); }
  void AllReduceSum(void* data, int64_t count, DType dtype) override {
    const Bytes x(data, count * DTypeSize(dtype));
    device_.AllReduceSum(x.at(), count, dtype);
    Finish();
    x.Read(data);
  }
  void ReduceScatterSum(const void* send, void* recv, int64_t count, DType dtype) override {
    const int64_t bytes = count * DTypeSize(dtype);
    const Bytes from(send, bytes * size()), to(bytes);
    device_.ReduceScatterSum(from.at(), to.at(), count, dtype);
    Finish();
    to.Read(recv);
  }
  void AllGather(const void* send, void* recv, int64_t bytes) override {
    const Bytes from(send, bytes), to(bytes * size());
    device_.AllGather(from.at(), to.at(), bytes);
    Finish();
    to.Read(recv);
  }
  void AllGatherEach(std::span<const Gather> arrays) override {
    std::vector<std::unique_ptr<Bytes>> from, to;
    std::vector<Gather> on_device;
    for (const Gather& array : arrays) {
      from.push_back(std::make_unique<Bytes>(array.send, array.bytes));
      to.push_back(std::make_unique<Bytes>(array.bytes * size()));
      on_device.push_back({from.back()->at(), to.back()->at(), array.bytes});
    }
    device_.AllGatherEach(on_device);
    Finish();
    for (size_t i = 0; i < arrays.size(); ++i) to[i]->Read(arrays[i].recv);
  }
  void AllGatherV(const void* send, void* recv, std::span<const int64_t> recv_bytes) override {
    const Bytes from(send, recv_bytes[rank()]), to(Sum(recv_bytes));
    device_.AllGatherV(from.at(), to.at(), recv_bytes);
    Finish();
    to.Read(recv);
  }
  void AllToAllV(const void* send, std::span<const int64_t> send_bytes, void* recv,
                 std::span<const int64_t> recv_bytes) override {
    const Bytes from(send, Sum(send_bytes)), to(Sum(recv_bytes));
    device_.AllToAllV(from.at(), send_bytes, to.at(), recv_bytes);
    Finish();
    to.Read(recv);
  }
  void Broadcast(void* data, int64_t bytes, int root) override {
    const Bytes x(data, bytes);
    device_.Broadcast(x.at(), bytes, root);
    Finish();
    x.Read(data);
  }
  void BroadcastMessage(std::vector<uint8_t>* message, int root) override {
    host_.BroadcastMessage(message, root);
  }
  void Barrier() override { host_.Barrier(); }

 private:
  static int64_t Sum(std::span<const int64_t> bytes) {
    return std::accumulate(bytes.begin(), bytes.end(), int64_t{0});
  }
  void Finish() {
    watch_.Await([&] {
      const cudaError_t error = cudaStreamQuery(stream_);
      if (error == cudaErrorNotReady) return false;
      Cuda(error);
      return true;
    });
  }

  Communicator& device_;
  HostCommunicator& host_;
  CollectiveWatch& watch_;
  cudaStream_t stream_;
};

}  // namespace hadal::testing
