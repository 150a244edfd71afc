// hadal-comm-bench: what a rank exchanges for one layer, through the communicator that the model uses
// and through NCCL called directly.
#include <cuda_runtime.h>
#include <mpi.h>
#include <nccl.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "worker/comm/mpi_communicator.h"
#include "worker/comm/nccl_communicator.h"

namespace hadal {
namespace {

constexpr const char* kDescription =
    "Times the collectives of one layer between GPUs, one rank per card:\n\n"
    "  NCCL_NVLS_ENABLE=0 mpirun --bind-to none -n 2 hadal-comm-bench\n\n"
    "all_reduce sums [tokens, dim] over the ranks. dispatch sends every token to all ranks that own one\n"
    "of its experts, for even routing; dispatch_combine also brings as many rows back. Activations are\n"
    "bf16, dims and experts per token those of the 16B and the 671B model. \"hadal\" is the\n"
    "communicator of hadal-worker, \"nccl\" ncclAllReduce, or ncclSend and ncclRecv in a group, of the\n"
    "same bytes. One JSON line for each: us is the time of a call in a stream, graph_us in a CUDA\n"
    "graph, both of the slowest rank; bus_GBs is what a rank's link carries: 2 (n - 1) / n times the\n"
    "bytes of a sum, and the bytes for other ranks of an exchange.";

constexpr int64_t kElementBytes = 2;
constexpr int kRepeats = 5;                      // the median counts
constexpr int kGraphCalls = 10;
constexpr int64_t kLargeBytes = 8 << 20;         // from here on fewer calls are made

struct Shape {
  const char* model;
  int64_t dim;
  int top_k;
};
constexpr Shape kShapes[] = {{"16B", 2048, 6}, {"671B", 7168, 8}};

void Cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

void Nccl(ncclResult_t result) {
  if (result != ncclSuccess) throw std::runtime_error(ncclGetErrorString(result));
}

// The two collectives, enqueued on one stream.
class Way {
 public:
  virtual ~Way() = default;
  virtual const char* name() const = 0;
  virtual void AllReduce(void* data, int64_t count) = 0;
  // `bytes` to and from every rank, the own one included.
  virtual void AllToAll(const uint8_t* send, uint8_t* recv, int64_t bytes) = 0;
};

class ThroughHadal final : public Way {
 public:
  explicit ThroughHadal(Communicator& comm) : comm_(comm) {}
  const char* name() const override { return "hadal"; }
  void AllReduce(void* data, int64_t count) override { comm_.AllReduceSum(data, count, DType::kBF16); }
  void AllToAll(const uint8_t* send, uint8_t* recv, int64_t bytes) override {
    parts_.assign(static_cast<size_t>(comm_.size()), bytes);
    comm_.AllToAllV(send, parts_, recv, parts_);
  }

 private:
  Communicator& comm_;
  std::vector<int64_t> parts_;
};

// A communicator of its own, blocking, with NCCL's defaults.
class PlainNccl final : public Way {
 public:
  PlainNccl(HostCommunicator& host, cudaStream_t stream) : size_(host.size()), stream_(stream) {
    ncclUniqueId id{};
    if (host.rank() == 0) Nccl(ncclGetUniqueId(&id));
    host.Broadcast(&id, sizeof(id), 0);
    Nccl(ncclCommInitRank(&comm_, size_, id, host.rank()));
  }
  ~PlainNccl() override { ncclCommDestroy(comm_); }
  PlainNccl(const PlainNccl&) = delete;
  const char* name() const override { return "nccl"; }
  void AllReduce(void* data, int64_t count) override {
    Nccl(ncclAllReduce(data, data, static_cast<size_t>(count), ncclBfloat16, ncclSum, comm_, stream_));
  }
  void AllToAll(const uint8_t* send, uint8_t* recv, int64_t bytes) override {
    Nccl(ncclGroupStart());
    for (int r = 0; r < size_; ++r) {
      Nccl(ncclSend(send + r * bytes, static_cast<size_t>(bytes), ncclUint8, r, comm_, stream_));
      Nccl(ncclRecv(recv + r * bytes, static_cast<size_t>(bytes), ncclUint8, r, comm_, stream_));
    }
    Nccl(ncclGroupEnd());
  }

 private:
  const int size_;
  const cudaStream_t stream_;
  ncclComm_t comm_ = nullptr;
};

// Zeros, so that sums of sums stay finite.
class Buffer {
 public:
  explicit Buffer(int64_t bytes) {
    Cuda(cudaMalloc(&data_, static_cast<size_t>(bytes)));
    Cuda(cudaMemset(data_, 0, static_cast<size_t>(bytes)));
    Cuda(cudaDeviceSynchronize());
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  uint8_t* get() const { return static_cast<uint8_t*>(data_); }

 private:
  void* data_ = nullptr;
};

// Times calls on a stream; every rank makes the same ones.
class StreamTimer {
 public:
  StreamTimer(HostCommunicator& host, CollectiveWatch& watch, cudaStream_t stream)
      : host_(host), watch_(watch), stream_(stream) {
    Cuda(cudaEventCreate(&begin_));
    Cuda(cudaEventCreate(&end_));
  }
  ~StreamTimer() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  StreamTimer(const StreamTimer&) = delete;

  // Microseconds of one call on the slowest rank.
  double Calls(const std::function<void()>& call, int calls) { return Median(call, calls) / calls; }

  // The same for calls that a graph holds.
  double Graph(const std::function<void()>& call, int calls) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    Cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed));
    for (int i = 0; i < kGraphCalls; ++i) call();
    Cuda(cudaStreamEndCapture(stream_, &graph));
    Cuda(cudaGraphInstantiate(&exec, graph, 0));
    const int launches = std::max(1, calls / kGraphCalls);
    const double us = Median([&] { Cuda(cudaGraphLaunch(exec, stream_)); }, launches);
    Cuda(cudaGraphExecDestroy(exec));
    Cuda(cudaGraphDestroy(graph));
    return us / (launches * kGraphCalls);
  }

 private:
  double Median(const std::function<void()>& call, int calls) {
    for (int i = 0; i < 3; ++i) call();
    Finish();
    std::vector<double> times;
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      host_.Barrier();
      Cuda(cudaEventRecord(begin_, stream_));
      for (int i = 0; i < calls; ++i) call();
      Cuda(cudaEventRecord(end_, stream_));
      Finish();
      float ms = 0;
      Cuda(cudaEventElapsedTime(&ms, begin_, end_));
      times.push_back(Slowest(ms * 1e3));
    }
    std::sort(times.begin(), times.end());
    return times[kRepeats / 2];
  }

  double Slowest(double own) {
    std::vector<double> all(static_cast<size_t>(host_.size()));
    host_.AllGather(&own, all.data(), sizeof(own));
    return *std::max_element(all.begin(), all.end());
  }

  void Finish() {
    watch_.Await([&] { return cudaStreamQuery(stream_) != cudaErrorNotReady; });
    Cuda(cudaStreamQuery(stream_));
  }

  HostCommunicator& host_;
  CollectiveWatch& watch_;
  const cudaStream_t stream_;
  cudaEvent_t begin_, end_;
};

// Rows for each rank when `tokens` tokens choose experts evenly.
int64_t RowsPerRank(int64_t tokens, int top_k, int ranks) {
  const double chosen = 1 - std::pow(1 - 1.0 / ranks, top_k);
  return std::max<int64_t>(1, std::llround(static_cast<double>(tokens) * chosen));
}

class CommBench {
 public:
  CommBench(HostCommunicator& host, CollectiveWatch& watch, cudaStream_t stream, int iterations)
      : host_(host), timer_(host, watch, stream), iterations_(iterations) {}

  void Run(const Shape& shape, int64_t tokens, Way* way) {
    const int ranks = host_.size();
    const int64_t sum = tokens * shape.dim;
    const int64_t part = RowsPerRank(tokens, shape.top_k, ranks) * shape.dim * kElementBytes;
    const Buffer x(std::max(sum * kElementBytes, part * ranks)), y(part * ranks);
    const auto carried = static_cast<double>(part * (ranks - 1));
    const nlohmann::json line = {{"communicator", way->name()}, {"ranks", ranks},
                                 {"model", shape.model}, {"dim", shape.dim}, {"tokens", tokens}};
    Time(line, "all_reduce", sum * kElementBytes,
         2.0 * (ranks - 1) / ranks * static_cast<double>(sum * kElementBytes),
         [&] { way->AllReduce(x.get(), sum); });
    Time(line, "dispatch", part * ranks, carried, [&] { way->AllToAll(x.get(), y.get(), part); });
    Time(line, "dispatch_combine", 2 * part * ranks, 2 * carried, [&] {
      way->AllToAll(x.get(), y.get(), part);
      way->AllToAll(y.get(), x.get(), part);
    });
  }

 private:
  void Time(nlohmann::json line, const char* what, int64_t bytes, double carried,
            const std::function<void()>& call) {
    const int calls = bytes < kLargeBytes ? iterations_ : std::max(kGraphCalls, iterations_ / 5);
    const double us = timer_.Calls(call, calls);
    const double graph_us = timer_.Graph(call, calls);
    line.update({{"collective", what}, {"bytes", bytes}, {"us", us}, {"graph_us", graph_us},
                 {"bus_GBs", carried / us / 1e3}, {"graph_bus_GBs", carried / graph_us / 1e3}});
    if (host_.rank() != 0) return;
    std::printf("%s\n", line.dump().c_str());
    std::fflush(stdout);
  }

  HostCommunicator& host_;
  StreamTimer timer_;
  const int iterations_;
};

void RunAll(HostCommunicator& host, const std::vector<int64_t>& tokens, int iterations) {
  cudaStream_t stream;
  Cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const Layout layout{.tensor_parallel = host.size(), .rank = host.rank()};
  auto made = MakeNcclCommGroup(host, layout, stream, {.timeout_s = 60});
  if (!made.ok()) throw std::runtime_error(made.status().ToString());
  CommBench bench(host, *made->watch, stream, iterations);
  ThroughHadal hadal(*made->world);
  PlainNccl plain(host, stream);
  for (const Shape& shape : kShapes) {
    for (const int64_t count : tokens) {
      for (Way* way : {static_cast<Way*>(&hadal), static_cast<Way*>(&plain)}) {
        bench.Run(shape, count, way);
      }
    }
  }
}

int Main(int argc, char** argv) {
  const MpiPlace place = GetMpiPlace();
  std::vector<int64_t> tokens = {1, 8, 64, 128, 4096};
  int iterations = 100;
  CLI::App app(kDescription, "hadal-comm-bench");
  app.add_option("--tokens", tokens, "tokens of each rank")->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("--iterations", iterations, "calls between two events")
      ->check(CLI::Range(10, 100000))
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return place.rank == 0 ? app.exit(e) : e.get_exit_code();
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0 || place.world == 1) {
    if (place.rank == 0) {
      std::printf("{\"skipped\": \"%s\"}\n", place.world == 1 ? "one rank exchanges nothing: start it "
                                                                "with mpirun" : "no CUDA device");
    }
    return 0;
  }
  try {
    Cuda(cudaSetDevice(place.local_rank % devices));
    auto comm = MakeMpiCommGroup({.tensor_parallel = place.world, .timeout_s = 60});
    if (!comm.ok()) throw std::runtime_error(comm.status().ToString());
    RunAll(*comm->world, tokens, iterations);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "hadal-comm-bench: rank %d: %s\n", place.rank, e.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  return 0;
}

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  const int exit_code = hadal::Main(argc, argv);
  MPI_Finalize();
  return exit_code;
}
