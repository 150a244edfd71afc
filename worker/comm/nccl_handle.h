#pragma once

#include <nccl.h>

#include <string>

#include "common/status.h"
#include "worker/comm/nccl_recorded.h"

namespace hadal {

// One non-blocking NCCL communicator: nothing waits without a deadline. One thread.
class NcclHandle {
 public:
  explicit NcclHandle(double timeout_s) : timeout_s_(timeout_s) {}
  // Ends what is outstanding, in an orderly way unless it was aborted. Never hangs.
  ~NcclHandle();
  NcclHandle(const NcclHandle&) = delete;
  NcclHandle& operator=(const NcclHandle&) = delete;

  // Joins the `size` ranks that hold `id`. max_ctas: how many CTAs a collective may take, 0: NCCL's
  // choice.
  Status Connect(const ncclUniqueId& id, int size, int rank, int max_ctas);

  // REQUIRES: connected. Throws CommError::kAborted after Abort().
  ncclComm_t get() const;
  // After every NCCL call on this communicator: waits while it is in progress. Throws CommError, and
  // aborts, when it fails or takes too long.
  void Settle(ncclResult_t result, const char* call);
  // Throws CommError, and aborts, when a collective has failed.
  void Check();
  // Gives up all collectives; those on a stream end with undefined results.
  void Abort() noexcept;

  // Of this communicator; none after Abort(), so that the next call comes to get().
  RecordedCollectives& recorded() { return recorded_; }

  double timeout_s() const { return timeout_s_; }

 private:
  // The state of the communicator once it is no longer in progress; ncclInProgress after `seconds`.
  ncclResult_t Poll(double seconds) const;
  std::string Describe(ncclResult_t result) const;

  const double timeout_s_;
  ncclComm_t comm_ = nullptr;
  RecordedCollectives recorded_;
};

}  // namespace hadal
