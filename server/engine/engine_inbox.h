#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <variant>
#include <vector>

#include "server/engine/engine.h"

namespace hadal {

// What other threads tell the engine thread, in the order in which they said it.
struct SubmitMessage {
  Request request;
  std::shared_ptr<RequestSink> sink;
};
struct CancelMessage {
  uint64_t id = 0;
};
struct JoinMessage {
  uint64_t epoch = 0;
  std::shared_ptr<WorkerGroup> group;
};
struct LostMessage {
  uint64_t epoch = 0;
  Status reason;
};
using EngineMessage =
    std::variant<SubmitMessage, CancelMessage, JoinMessage, StepResult, LostMessage>;

// The thread-safe half of the engine: a bounded queue of messages, and the few facts that callers
// get an answer from at once (is there room, is a group joined, is the engine draining).
class EngineInbox {
 public:
  explicit EngineInbox(const EngineOptions& options) : options_(options) {}

  // Any thread.
  Status Submit(Request request, std::shared_ptr<RequestSink> sink);
  void Cancel(uint64_t id);
  StatusOr<uint64_t> Join(std::shared_ptr<WorkerGroup> group);
  void OnResult(StepResult result);
  void OnGroupLost(uint64_t epoch, Status reason);
  void StartDrain();
  bool Drained() const;
  EngineStats stats() const;
  // Refuses everything from now on and ends Wait.
  void Stop();

  // Engine thread.
  std::vector<EngineMessage> Take();
  // The engine itself closed this group: another may join.
  void GroupClosed(uint64_t epoch);
  // `ended` requests need no more attention; `waiting_*` is the state of the queue behind.
  void Report(const EngineStats& stats, int64_t waiting_tokens, size_t ended);
  // Blocks until there is a message or the time is over; false after Stop.
  bool Wait(int64_t timeout_us);

 private:
  void Post(EngineMessage message);  // REQUIRES: mutex_ held

  const EngineOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  // All below are guarded by mutex_.
  std::vector<EngineMessage> messages_;
  bool draining_ = false;
  bool stopped_ = false;
  size_t live_requests_ = 0;      // accepted and not ended
  int32_t waiting_requests_ = 0;  // in messages_ and in the scheduler's queue
  int64_t waiting_tokens_ = 0;
  int32_t posted_requests_ = 0;  // the part of the two above that is still in messages_
  int64_t posted_tokens_ = 0;
  uint64_t last_epoch_ = 0;
  uint64_t joined_epoch_ = 0;  // 0: none
  std::string fingerprint_;    // of the first group that joined
  EngineStats stats_;
};

}  // namespace hadal
