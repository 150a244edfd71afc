#include "worker/comm/nccl_communicator.h"

#include <cuda_runtime.h>
#include <nccl.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "worker/comm/nccl_handle.h"
#include "worker/comm/wait.h"

namespace hadal {
namespace {

// Waiting for a step looks at its end this often at least.
constexpr int64_t kAwaitSleepUs = 100;
// Collectives of ranks that share a device must all be resident at once.
constexpr int kSharedDeviceCtas = 2;

void CheckCuda(cudaError_t error, const char* call) {
  if (error != cudaSuccess) {
    throw std::runtime_error(fmt::format("{}: {}", call, cudaGetErrorString(error)));
  }
}

ncclDataType_t NcclType(DType dtype) {
  HADAL_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "{} is not summed", DTypeName(dtype));
  return dtype == DType::kF32 ? ncclFloat32 : ncclBfloat16;
}

class NcclCommunicator final : public Communicator {
 public:
  // `handle` is null for one rank alone.
  NcclCommunicator(std::shared_ptr<NcclHandle> handle, int rank, int size, cudaStream_t stream)
      : handle_(std::move(handle)), rank_(rank), size_(size), stream_(stream) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void AllReduceSum(void* data, int64_t count, DType dtype) override {
    if (size_ == 1 || count == 0) return;
    handle_->recorded().Run(stream_, {data, count, dtype}, [&] {
      handle_->Settle(ncclAllReduce(data, data, static_cast<size_t>(count), NcclType(dtype), ncclSum,
                                    handle_->get(), stream_),
                      "ncclAllReduce");
    });
  }

  void ReduceScatterSum(const void* send, void* recv, int64_t count, DType dtype) override {
    if (size_ == 1) return CopyOwn(recv, send, count * DTypeSize(dtype));
    if (count == 0) return;
    handle_->Settle(ncclReduceScatter(send, recv, static_cast<size_t>(count), NcclType(dtype),
                                      ncclSum, handle_->get(), stream_),
                    "ncclReduceScatter");
  }

  void AllGather(const void* send, void* recv, int64_t bytes) override {
    const Gather array{send, recv, bytes};
    AllGatherEach({&array, 1});
  }

  void AllGatherEach(std::span<const Gather> arrays) override {
    if (size_ == 1) {
      for (const Gather& array : arrays) CopyOwn(array.recv, array.send, array.bytes);
      return;
    }
    InOneLaunch("ncclAllGather", [&](auto add) {
      for (const auto& [send, recv, bytes] : arrays) {
        if (bytes == 0) continue;
        add(ncclAllGather(send, recv, static_cast<size_t>(bytes), ncclUint8, handle_->get(), stream_));
      }
    });
  }

  void AllGatherV(const void* send, void* recv, std::span<const int64_t> recv_bytes) override {
    if (std::all_of(recv_bytes.begin(), recv_bytes.end(),
                    [&](int64_t bytes) { return bytes == recv_bytes[0]; })) {
      return AllGather(send, recv, recv_bytes[0]);
    }
    std::vector<Part> parts;
    auto* to = static_cast<uint8_t*>(recv);
    for (const int64_t bytes : recv_bytes) {
      parts.push_back({static_cast<const uint8_t*>(send), recv_bytes[rank_], to, bytes});
      to += bytes;
    }
    Exchange(parts);
  }

  void AllToAllV(const void* send, std::span<const int64_t> send_bytes, void* recv,
                 std::span<const int64_t> recv_bytes) override {
    std::vector<Part> parts;
    const auto* from = static_cast<const uint8_t*>(send);
    auto* to = static_cast<uint8_t*>(recv);
    for (int r = 0; r < size_; ++r) {
      parts.push_back({from, send_bytes[r], to, recv_bytes[r]});
      from += send_bytes[r];
      to += recv_bytes[r];
    }
    Exchange(parts);
  }

  void Broadcast(void* data, int64_t bytes, int root) override {
    if (size_ == 1 || bytes == 0) return;
    handle_->Settle(ncclBroadcast(data, data, static_cast<size_t>(bytes), ncclUint8, root,
                                  handle_->get(), stream_),
                    "ncclBroadcast");
  }

 private:
  // What goes to and comes from one rank.
  struct Part {
    const uint8_t* send;
    int64_t send_bytes;
    uint8_t* recv;
    int64_t recv_bytes;
  };

  void CopyOwn(void* to, const void* from, int64_t bytes) {
    if (to == from || bytes == 0) return;
    CheckCuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                              stream_),
              "cudaMemcpyAsync");
  }

  // calls(add) hands the result of each NCCL call to add.
  template <typename Calls>
  void InOneLaunch(const char* name, Calls calls) {
    ncclResult_t failed = ncclGroupStart();
    bool any = false;
    calls([&](ncclResult_t result) {
      any = true;
      if (failed == ncclSuccess && result != ncclInProgress) failed = result;
    });
    const ncclResult_t ended = ncclGroupEnd();
    if (failed != ncclSuccess) handle_->Settle(failed, name);
    if (any) handle_->Settle(ended, name);
  }

  void Exchange(const std::vector<Part>& parts) {
    CopyOwn(parts[rank_].recv, parts[rank_].send, parts[rank_].recv_bytes);
    if (size_ == 1) return;
    InOneLaunch("ncclSend or ncclRecv", [&](auto add) {
      const ncclComm_t comm = handle_->get();
      for (int i = 1; i < size_; ++i) {
        const int to = (rank_ + i) % size_;
        const int from = (rank_ + size_ - i) % size_;
        if (parts[to].send_bytes > 0) {
          add(ncclSend(parts[to].send, static_cast<size_t>(parts[to].send_bytes), ncclUint8, to,
                       comm, stream_));
        }
        if (parts[from].recv_bytes > 0) {
          add(ncclRecv(parts[from].recv, static_cast<size_t>(parts[from].recv_bytes), ncclUint8,
                       from, comm, stream_));
        }
      }
    });
  }

  std::shared_ptr<NcclHandle> handle_;
  const int rank_;
  const int size_;
  const cudaStream_t stream_;
};

class Watch final : public CollectiveWatch {
 public:
  Watch(std::vector<std::shared_ptr<NcclHandle>> handles, double timeout_s)
      : handles_(std::move(handles)), timeout_s_(timeout_s) {}

  void Check() override {
    try {
      for (const auto& handle : handles_) handle->Check();
    } catch (const CommError&) {
      AbortAll();
      throw;
    }
  }

  void Await(const std::function<bool()>& done) override {
    for (PollBackoff backoff(kAwaitSleepUs); !done(); backoff.Pause()) {
      if (!backoff.TimeToCheck()) continue;
      Check();
      if (backoff.ElapsedSeconds() > timeout_s_) {
        AbortAll();
        throw CommError(CommError::Kind::kTimeout,
                        fmt::format("the device has not finished a step within {:.0f} s: a peer is "
                                    "silent", timeout_s_));
      }
    }
  }

 private:
  void AbortAll() {
    for (const auto& handle : handles_) handle->Abort();
  }

  const std::vector<std::shared_ptr<NcclHandle>> handles_;  // without null
  const double timeout_s_;
};

// What every rank tells the others before it connects.
struct Introduction {
  cudaUUID_t device{};
  ncclUniqueId world{};    // of rank 0 counts
  ncclUniqueId tensor{};   // of the first rank of each D group counts
  int32_t failed = 0;      // an ncclResult_t, or -1 for CUDA
};

cudaError_t CurrentDevice(cudaUUID_t* uuid) {
  int device = 0;
  cudaDeviceProp properties;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, device);
  if (error == cudaSuccess) *uuid = properties.uuid;
  return error;
}

bool SharesDevices(const std::vector<Introduction>& all) {
  std::set<std::string> seen;
  for (const Introduction& i : all) seen.emplace(i.device.bytes, sizeof(i.device.bytes));
  return seen.size() < all.size();
}

// NCCL refuses two ranks of one host on one device, so every process has to pose as a host.
void PoseAsHost(int rank) {
  spdlog::warn("ranks share a GPU: collectives are slow and for tests only");
  setenv("NCCL_HOSTID", fmt::format("rank{}", rank).c_str(), 0);
  setenv("NCCL_SOCKET_IFNAME", "lo", 0);
  setenv("NCCL_NVLS_ENABLE", "0", 0);
}

StatusOr<std::shared_ptr<NcclHandle>> Join(const ncclUniqueId& id, int size, int rank, bool shared,
                                           const NcclOptions& options) {
  auto handle = std::make_shared<NcclHandle>(options.timeout_s);
  HADAL_RETURN_IF_ERROR(handle->Connect(id, size, rank, shared ? kSharedDeviceCtas : 0));
  return handle;
}

}  // namespace

StatusOr<NcclCommGroup> MakeNcclCommGroup(HostCommunicator& host, const Layout& layout,
                                          CUstream_st* stream, const NcclOptions& options) {
  const int size = layout.world();
  const int tensor_size = layout.tensor_parallel;
  HADAL_CHECK(host.size() == size && host.rank() == layout.rank);
  const auto alone = std::make_shared<NcclCommunicator>(nullptr, 0, 1, stream);
  if (size == 1) {
    return NcclCommGroup{alone, alone, std::make_shared<Watch>(
        std::vector<std::shared_ptr<NcclHandle>>{}, options.timeout_s)};
  }
  Introduction own;
  std::vector<Introduction> all(static_cast<size_t>(size));
  if (CurrentDevice(&own.device) != cudaSuccess) own.failed = -1;
  host.AllGather(&own, all.data(), sizeof(own));
  const bool shared = SharesDevices(all);
  if (shared) PoseAsHost(layout.rank);  // before the first call of NCCL, which reads it once
  if (own.failed == 0) own.failed = ncclGetUniqueId(&own.world);
  if (own.failed == 0) own.failed = ncclGetUniqueId(&own.tensor);
  host.AllGather(&own, all.data(), sizeof(own));
  for (int r = 0; r < size; ++r) {
    const int32_t failed = all[static_cast<size_t>(r)].failed;
    if (failed == 0) continue;
    return FailedPrecondition("rank {} has no {}: {}", r, failed < 0 ? "CUDA device" : "NCCL",
                              failed < 0 ? "is its driver loaded?"
                                         : ncclGetErrorString(static_cast<ncclResult_t>(failed)));
  }
  HADAL_ASSIGN_OR_RETURN(auto world, Join(all[0].world, size, layout.rank, shared, options));
  std::vector<std::shared_ptr<NcclHandle>> handles{world};
  NcclCommGroup group;
  group.world = std::make_shared<NcclCommunicator>(world, layout.rank, size, stream);
  group.tensor = tensor_size == size ? group.world : alone;
  if (tensor_size > 1 && tensor_size < size) {
    const auto leader = static_cast<size_t>(layout.dp_rank() * tensor_size);
    HADAL_ASSIGN_OR_RETURN(auto tensor, Join(all[leader].tensor, tensor_size, layout.tp_rank(),
                                             shared, options));
    handles.push_back(tensor);
    group.tensor = std::make_shared<NcclCommunicator>(tensor, layout.tp_rank(), tensor_size, stream);
  }
  group.watch = std::make_shared<Watch>(std::move(handles), options.timeout_s);
  return group;
}

}  // namespace hadal
