#include "worker/comm/nccl_handle.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <future>
#include <memory>
#include <thread>

#include "worker/comm/communicator.h"
#include "worker/comm/wait.h"

namespace hadal {
namespace {

// Starting a collective on a non-blocking communicator takes some 50 us.
constexpr int64_t kMaxSleepUs = 50;
constexpr double kFinalizeSeconds = 5;
constexpr std::chrono::seconds kAbortPatience(10);

}  // namespace

NcclHandle::~NcclHandle() {
  if (comm_ == nullptr) return;
  recorded_.Clear();
  ncclResult_t result = ncclCommFinalize(comm_);
  if (result == ncclInProgress) result = Poll(kFinalizeSeconds);
  if (result == ncclSuccess) {
    ncclCommDestroy(comm_);
  } else {
    spdlog::warn("NCCL communicator does not come to rest ({}); aborted", Describe(result));
    Abort();
  }
}

Status NcclHandle::Connect(const ncclUniqueId& id, int size, int rank, int max_ctas) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  if (max_ctas > 0) {
    config.minCTAs = 1;
    config.maxCTAs = max_ctas;
  }
  ncclResult_t result = ncclCommInitRankConfig(&comm_, size, id, rank, &config);
  if (result == ncclInProgress) result = Poll(timeout_s_);
  if (result == ncclSuccess) return OkStatus();
  Status status = Unavailable("rank {} of {} cannot join the NCCL communicator: {}", rank, size,
                              result == ncclInProgress
                                  ? fmt::format("nothing happened for {:.0f} s", timeout_s_)
                                  : Describe(result));
  Abort();
  return status;
}

ncclComm_t NcclHandle::get() const {
  if (comm_ == nullptr) {
    throw CommError(CommError::Kind::kAborted, "the NCCL communicator has been aborted");
  }
  return comm_;
}

void NcclHandle::Settle(ncclResult_t result, const char* call) {
  if (result == ncclInProgress) result = Poll(timeout_s_);
  if (result == ncclSuccess) return;
  const bool late = result == ncclInProgress;
  const std::string message =
      late ? fmt::format("{} has not started within {:.0f} s: a peer is silent", call, timeout_s_)
           : fmt::format("{}: {}", call, Describe(result));
  Abort();
  throw CommError(late ? CommError::Kind::kTimeout : CommError::Kind::kPeerFailed, message);
}

void NcclHandle::Check() {
  ncclResult_t state = ncclSuccess;
  const ncclResult_t result = ncclCommGetAsyncError(get(), &state);
  if (result != ncclSuccess) state = result;
  if (state == ncclSuccess || state == ncclInProgress) return;
  const std::string message = fmt::format("a collective failed: {}", Describe(state));
  Abort();
  throw CommError(CommError::Kind::kPeerFailed, message);
}

void NcclHandle::Abort() noexcept {
  if (comm_ == nullptr) return;
  recorded_.Clear();
  // On a thread of its own, since NCCL may wait for what does not end.
  auto ended = std::make_shared<std::promise<void>>();
  std::future<void> end = ended->get_future();
  std::thread([comm = comm_, ended] {
    ncclCommAbort(comm);
    ended->set_value();
  }).detach();
  comm_ = nullptr;
  if (end.wait_for(kAbortPatience) == std::future_status::timeout) {
    spdlog::error("NCCL does not give up its collectives; they end with the process");
  }
}

ncclResult_t NcclHandle::Poll(double seconds) const {
  ncclResult_t state = ncclInProgress;
  for (PollBackoff backoff(kMaxSleepUs);; backoff.Pause()) {
    const ncclResult_t result = ncclCommGetAsyncError(comm_, &state);
    if (result != ncclSuccess) return result;
    if (state != ncclInProgress) return state;
    if (backoff.TimeToCheck() && backoff.ElapsedSeconds() > seconds) return state;
  }
}

std::string NcclHandle::Describe(ncclResult_t result) const {
  const char* detail = comm_ != nullptr ? ncclGetLastError(comm_) : "";
  return fmt::format("{}{}{}", ncclGetErrorString(result), *detail ? ": " : "", detail);
}

}  // namespace hadal
