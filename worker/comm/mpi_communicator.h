#pragma once

#include <sched.h>

#include <memory>
#include <vector>

#include "common/status.h"
#include "worker/comm/communicator.h"

namespace hadal {

struct MpiOptions {
  int tensor_parallel = 1;
  int data_parallel = 1;
  double timeout_s = 120;  // of one exchange within a step; waiting for a plan has none
};

// The communicators of this process over MPI_COMM_WORLD. INVALID_ARGUMENT when the job's size is not
// tensor_parallel * data_parallel. REQUIRES: MPI_Init has run; destroy before MPI_Finalize.
StatusOr<CommGroup> MakeMpiCommGroup(const MpiOptions& options);

// All ranks, for what they settle before the first plan: without a deadline, since one may read its
// weights more slowly than others; mpirun ends the job when a rank dies. Every rank of the world calls
// it. REQUIRES: as above.
std::shared_ptr<HostCommunicator> MakeMpiStartCommunicator();

// World rank and size; this rank among those of its host.
struct MpiPlace {
  int rank = 0;
  int world = 1;
  int local_rank = 0;
};
MpiPlace GetMpiPlace();

// `own` of every rank of this host, by local rank. All ranks of the world call it.
std::vector<cpu_set_t> GatherOnHost(const cpu_set_t& own);

}  // namespace hadal
