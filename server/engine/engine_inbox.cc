#include "server/engine/engine_inbox.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace hadal {
namespace {

constexpr int64_t kLongestWaitUs = 3'600'000'000;

Status CheckRequest(const Request& request) {
  if (request.prompt.empty()) return InvalidArgument("prompt: at least one token id is needed");
  if (request.max_tokens < 1) {
    return InvalidArgument("max_tokens: {} given, at least 1 is needed", request.max_tokens);
  }
  const auto negative = std::ranges::find_if(request.prompt, [](int32_t id) { return id < 0; });
  if (negative != request.prompt.end()) {
    return InvalidArgument("prompt: token id {} is negative", *negative);
  }
  return OkStatus();
}

Status CheckCapacity(const GroupCapacity& capacity) {
  const std::pair<const char*, int32_t> fields[] = {
      {"data_parallel", capacity.data_parallel},
      {"kv_blocks", capacity.kv_blocks},
      {"max_slots", capacity.max_slots},
      {"max_step_tokens", capacity.max_step_tokens},
  };
  for (const auto& [name, value] : fields) {
    if (value < 1) {
      return InvalidArgument("worker group capacity: {} is {}, at least 1 is needed", name, value);
    }
  }
  return OkStatus();
}

}  // namespace

void EngineInbox::Post(EngineMessage message) {
  messages_.push_back(std::move(message));
  if (messages_.size() == 1) wake_.notify_one();
}

Status EngineInbox::Submit(Request request, std::shared_ptr<RequestSink> sink) {
  HADAL_RETURN_IF_ERROR(CheckRequest(request));
  const auto tokens = static_cast<int64_t>(request.prompt.size());
  std::lock_guard lock(mutex_);
  if (stopped_ || draining_) return Unavailable("the server is shutting down");
  if (waiting_requests_ >= options_.max_waiting_requests) {
    return ResourceExhausted("{} requests are waiting, the limit; try again later",
                             waiting_requests_);
  }
  // A single long prompt is not refused for its length alone: then it could never be served.
  if (waiting_requests_ > 0 && waiting_tokens_ + tokens > options_.max_waiting_tokens) {
    return ResourceExhausted(
        "requests with {} prompt tokens are waiting, {} more exceed the limit of {}; try again "
        "later",
        waiting_tokens_, tokens, options_.max_waiting_tokens);
  }
  ++live_requests_;
  ++waiting_requests_;
  ++posted_requests_;
  waiting_tokens_ += tokens;
  posted_tokens_ += tokens;
  Post(SubmitMessage{std::move(request), std::move(sink)});
  return OkStatus();
}

void EngineInbox::Cancel(uint64_t id) {
  std::lock_guard lock(mutex_);
  if (!stopped_) Post(CancelMessage{id});
}

StatusOr<uint64_t> EngineInbox::Join(std::shared_ptr<WorkerGroup> group) {
  const GroupCapacity& capacity = group->capacity();
  HADAL_RETURN_IF_ERROR(CheckCapacity(capacity));
  std::lock_guard lock(mutex_);
  if (stopped_) return Unavailable("the server is shutting down");
  if (joined_epoch_ != 0) {
    return Status(StatusCode::kAborted,
                  fmt::format("a worker group is joined already, as epoch {}", joined_epoch_));
  }
  if (last_epoch_ != 0 && capacity.fingerprint != fingerprint_) {
    return FailedPrecondition(
        "the worker group brings model {}, this server has been serving {}; restart the server to "
        "change the model",
        capacity.fingerprint, fingerprint_);
  }
  fingerprint_ = capacity.fingerprint;
  joined_epoch_ = ++last_epoch_;
  Post(JoinMessage{joined_epoch_, std::move(group)});
  return joined_epoch_;
}

void EngineInbox::OnResult(StepResult result) {
  std::lock_guard lock(mutex_);
  if (!stopped_ && result.epoch == joined_epoch_) Post(std::move(result));
}

void EngineInbox::OnGroupLost(uint64_t epoch, Status reason) {
  std::lock_guard lock(mutex_);
  if (stopped_ || epoch != joined_epoch_) return;
  joined_epoch_ = 0;
  Post(LostMessage{epoch, std::move(reason)});
}

void EngineInbox::StartDrain() {
  std::lock_guard lock(mutex_);
  draining_ = true;
}

bool EngineInbox::Drained() const {
  std::lock_guard lock(mutex_);
  return draining_ && live_requests_ == 0;
}

EngineStats EngineInbox::stats() const {
  std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  if (stats.epoch != joined_epoch_) stats.epoch = 0;
  stats.draining = draining_;
  stats.ready = stats.ready && stats.epoch != 0 && !draining_;
  return stats;
}

void EngineInbox::Stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  wake_.notify_one();
}

std::vector<EngineMessage> EngineInbox::Take() {
  std::lock_guard lock(mutex_);
  posted_requests_ = 0;
  posted_tokens_ = 0;
  return std::exchange(messages_, {});
}

void EngineInbox::GroupClosed(uint64_t epoch) {
  std::lock_guard lock(mutex_);
  if (joined_epoch_ == epoch) joined_epoch_ = 0;
}

void EngineInbox::Report(const EngineStats& stats, int64_t waiting_tokens, size_t ended) {
  std::lock_guard lock(mutex_);
  stats_ = stats;
  live_requests_ -= ended;
  waiting_requests_ = stats.waiting + posted_requests_;
  waiting_tokens_ = waiting_tokens + posted_tokens_;
}

bool EngineInbox::Wait(int64_t timeout_us) {
  std::unique_lock lock(mutex_);
  wake_.wait_for(lock, std::chrono::microseconds(std::min(timeout_us, kLongestWaitUs)),
                 [this] { return stopped_ || !messages_.empty(); });
  return !stopped_;
}

}  // namespace hadal
