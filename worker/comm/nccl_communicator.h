#pragma once

#include <memory>

#include "common/layout.h"
#include "common/status.h"
#include "worker/comm/communicator.h"

struct CUstream_st;  // what cudaStream_t points to

namespace hadal {

struct NcclOptions {
  double timeout_s = 120;  // of connecting, of starting a collective, of one Await()
};

// The communicators of one rank over a device's memory; calls enqueue on the stream they were made
// for and may be captured in a CUDA graph. Sums: every rank gets the same bits, in NCCL's order. After
// an error every call throws CommError. Destroy after the graphs that hold their collectives.
struct NcclCommGroup {
  std::shared_ptr<Communicator> world;   // T * D ranks
  std::shared_ptr<Communicator> tensor;  // the T ranks of this rank's D group
  std::shared_ptr<CollectiveWatch> watch;
};

// Every rank of `host` calls it with the device that it will use as the thread's current one; `stream`
// is of that device and outlives the group. FAILED_PRECONDITION or UNAVAILABLE says what NCCL misses.
// Ranks that share a device, which is for tests only, talk over the loopback interface.
StatusOr<NcclCommGroup> MakeNcclCommGroup(HostCommunicator& host, const Layout& layout,
                                          CUstream_st* stream, const NcclOptions& options);

}  // namespace hadal
