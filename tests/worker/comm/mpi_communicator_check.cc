// mpirun -n T*D mpi_communicator_check T D: exits 0 when every collective of both communicators is
// exact on every rank. HADAL_TEST_SEED fixes the seed.
#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <random>

#include "tests/worker/comm/collective_cases.h"
#include "worker/comm/mpi_communicator.h"

namespace {

std::string Check(const hadal::CommGroup& comm, uint64_t seed) {
  for (hadal::HostCommunicator* c : {comm.world.get(), comm.tensor.get()}) {
    std::string error = hadal::testing::CheckAllCollectives(*c, seed);
    if (error.empty()) error = hadal::testing::CheckReductionOrder(*c, seed);
    if (!error.empty()) return error;
  }
  return "";
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  if (argc != 3) {
    std::fprintf(stderr, "usage: mpi_communicator_check TENSOR_PARALLEL DATA_PARALLEL\n");
    MPI_Abort(MPI_COMM_WORLD, 2);
  }
  const char* fixed = std::getenv("HADAL_TEST_SEED");
  uint64_t seed = fixed ? std::strtoull(fixed, nullptr, 10) : std::random_device{}();
  MPI_Bcast(&seed, 8, MPI_BYTE, 0, MPI_COMM_WORLD);
  std::string error;
  {
    auto comm = hadal::MakeMpiCommGroup(
        {.tensor_parallel = std::atoi(argv[1]), .data_parallel = std::atoi(argv[2])});
    error = comm.ok() ? Check(*comm, seed) : comm.status().ToString();
  }
  if (!error.empty()) {
    std::fprintf(stderr, "HADAL_TEST_SEED=%llu: wrong: %s\n", static_cast<unsigned long long>(seed),
                 error.c_str());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return 0;
}
