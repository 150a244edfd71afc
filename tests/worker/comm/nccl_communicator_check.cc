// mpirun -n T*D nccl_communicator_check T D: exits 0 when every collective of both communicators is
// exact on every rank, in the order of a stream, in a replayed CUDA graph, and when a silent peer is
// noticed. HADAL_TEST_SEED fixes the seed.
#include <cuda_runtime.h>
#include <mpi.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "tests/worker/comm/collective_cases.h"
#include "tests/worker/comm/through_device.h"
#include "worker/comm/mpi_communicator.h"
#include "worker/comm/nccl_communicator.h"

namespace hadal::testing {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// bf16 sums of small integers are exact.
std::string CheckBf16(ThroughDevice& comm, uint64_t seed) {
  const int64_t count = 10001;
  const auto value = [&](int rank, int64_t i) {
    return static_cast<float>(static_cast<int>(InputValue(seed, rank, i)) % 16);
  };
  std::vector<bf16_t> data(count);
  for (int64_t i = 0; i < count; ++i) data[i] = FloatToBf16(value(comm.rank(), i));
  comm.AllReduceSum(data.data(), count, DType::kBF16);
  for (int64_t i = 0; i < count; ++i) {
    float expected = 0;
    for (int r = 0; r < comm.size(); ++r) expected += value(r, i);
    if (Bf16ToFloat(data[i]) != expected) return "AllReduceSum of bf16";
  }
  return "";
}

// Collectives captured once and launched several times: x becomes size^launches * x; each rank's part
// of a gather and of an exchange arrives, and the sum of what arrived is size times as much.
std::string CheckGraph(Communicator& comm, CollectiveWatch& watch, cudaStream_t stream) {
  const int64_t count = 3000;
  const int launches = 4;
  const std::vector<float> ones(count, 1.0f);
  const Bytes x(ones.data(), count * 4), gathered(count * 4 * comm.size());
  const Bytes exchanged(count * 4 * comm.size()), each(count * 4 * comm.size()), sums(count * 4);
  const std::vector<int64_t> part(static_cast<size_t>(comm.size()), count * 4);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  Cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  comm.AllReduceSum(x.at(), count, DType::kF32);
  comm.AllGather(x.at(), gathered.at(), count * 4);
  comm.AllToAllV(gathered.at(), part, exchanged.at(), part);
  const Communicator::Gather halves[] = {{x.at(), each.at(), count * 2},
                                         {x.at(), each.at() + count * 2 * comm.size(), count * 2}};
  comm.AllGatherEach(halves);
  comm.ReduceScatterSum(each.at(), sums.at(), count, DType::kF32);
  Cuda(cudaStreamEndCapture(stream, &graph));
  Cuda(cudaGraphInstantiate(&exec, graph, 0));
  const double start = Now();
  for (int i = 0; i < launches; ++i) Cuda(cudaGraphLaunch(exec, stream));
  watch.Await([&] { return cudaStreamQuery(stream) == cudaSuccess; });
  if (comm.rank() == 0) {
    std::printf("%d ranks: %d replays of five collectives took %.2f ms each\n", comm.size(), launches,
                (Now() - start) * 1e3 / launches);
  }
  std::vector<float> all(static_cast<size_t>(count * comm.size())), own(static_cast<size_t>(count));
  exchanged.Read(all.data());
  sums.Read(own.data());
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  float expected = 1;
  for (int i = 0; i < launches; ++i) expected *= static_cast<float>(comm.size());
  for (const float v : all) {
    if (v != expected) return "collectives in a graph";
  }
  for (const float v : own) {
    if (v != expected * static_cast<float>(comm.size())) return "sums in a graph";
  }
  return "";
}

// The same sum again and again, of an address and a size that the communicator knows by then: x becomes
// size^repeats * x. Others between them.
std::string CheckRepeatedSums(Communicator& comm, CollectiveWatch& watch, cudaStream_t stream) {
  const int64_t count = 3001;
  const std::vector<float> ones(count, 1.0f);
  const Bytes x(ones.data(), count * 4), y(ones.data(), count * 4);
  float of_x = 1, of_y = 1;
  for (int i = 0; i < 5; ++i) {
    comm.AllReduceSum(x.at(), count, DType::kF32);
    of_x *= static_cast<float>(comm.size());
    if (i % 2 == 0) continue;
    comm.AllReduceSum(y.at(), count, DType::kF32);
    of_y *= static_cast<float>(comm.size());
  }
  watch.Await([&] { return cudaStreamQuery(stream) == cudaSuccess; });
  std::vector<float> got_x(count), got_y(count);
  x.Read(got_x.data());
  y.Read(got_y.data());
  for (int64_t i = 0; i < count; ++i) {
    if (got_x[i] != of_x || got_y[i] != of_y) return "repeated sums";
  }
  return "";
}

// Rank 0 sums, the others never do: it learns so after the timeout, and its stream ends.
std::string CheckSilentPeer(HostCommunicator& host, const Layout& layout, cudaStream_t stream) {
  auto made = MakeNcclCommGroup(host, layout, stream, {.timeout_s = 3});
  if (!made.ok()) return made.status().ToString();
  std::string error;
  if (layout.rank == 0) {
    const Bytes x(1000 * 4);
    const double start = Now();
    try {
      made->world->AllReduceSum(x.at(), 1000, DType::kF32);
      made->watch->Await([&] { return cudaStreamQuery(stream) == cudaSuccess; });
      error = "a sum without peers came to an end";
    } catch (const CommError& e) {
      std::printf("after %.1f s: %s\n", Now() - start, e.what());
      if (e.kind() != CommError::Kind::kTimeout) error = "the error is not a timeout";
    }
    if (error.empty() && Now() - start > 20) error = "the abort took too long";
    Cuda(cudaStreamSynchronize(stream));
    try {
      made->world->AllReduceSum(x.at(), 1000, DType::kF32);
      error = "an aborted communicator goes on";
    } catch (const CommError&) {
    }
  }
  host.Barrier();
  return error;
}

std::string Check(const CommGroup& comm, const Layout& layout, uint64_t seed) {
  cudaStream_t stream;
  Cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const double start = Now();
  auto made = MakeNcclCommGroup(*comm.world, layout, stream, {.timeout_s = 60});
  if (!made.ok()) return made.status().ToString();
  if (layout.rank == 0) std::printf("connected in %.1f s\n", Now() - start);
  const std::pair<Communicator*, HostCommunicator*> pairs[] = {
      {made->world.get(), comm.world.get()}, {made->tensor.get(), comm.tensor.get()}};
  for (const auto& [device, host] : pairs) {
    if (device->size() != host->size() || device->rank() != host->rank()) return "wrong places";
    ThroughDevice through(*device, *host, *made->watch, stream);
    std::string error = CheckAllCollectives(through, seed);
    if (error.empty()) error = CheckBf16(through, seed);
    if (error.empty()) error = CheckGraph(*device, *made->watch, stream);
    if (error.empty()) error = CheckRepeatedSums(*device, *made->watch, stream);
    if (!error.empty()) return error;
    comm.world->Barrier();
  }
  if (layout.rank == 0) std::printf("collectives are right after %.1f s\n", Now() - start);
  return layout.world() > 1 ? CheckSilentPeer(*comm.world, layout, stream) : "";
}

}  // namespace
}  // namespace hadal::testing

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  if (argc != 3) {
    std::fprintf(stderr, "usage: nccl_communicator_check TENSOR_PARALLEL DATA_PARALLEL\n");
    MPI_Abort(MPI_COMM_WORLD, 2);
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    MPI_Finalize();
    return 0;
  }
  const char* fixed = std::getenv("HADAL_TEST_SEED");
  uint64_t seed = fixed ? std::strtoull(fixed, nullptr, 10) : std::random_device{}();
  MPI_Bcast(&seed, 8, MPI_BYTE, 0, MPI_COMM_WORLD);
  std::string error;
  try {
    const hadal::Layout layout{std::atoi(argv[1]), std::atoi(argv[2]), hadal::GetMpiPlace().rank};
    hadal::testing::Cuda(cudaSetDevice(layout.rank % devices));
    auto comm = hadal::MakeMpiCommGroup(
        {.tensor_parallel = layout.tensor_parallel, .data_parallel = layout.data_parallel});
    error = comm.ok() ? hadal::testing::Check(*comm, layout, seed) : comm.status().ToString();
  } catch (const std::exception& e) {
    error = e.what();
  }
  if (!error.empty()) {
    std::fprintf(stderr, "HADAL_TEST_SEED=%llu: wrong: %s\n", static_cast<unsigned long long>(seed),
                 error.c_str());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return 0;
}
