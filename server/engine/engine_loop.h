#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string_view>
#include <thread>
#include <unordered_map>

#include "server/engine/engine.h"
#include "server/engine/engine_inbox.h"
#include "server/scheduler/scheduler.h"

namespace hadal {

// The shipped Engine. README.md states who may touch what.
class EngineLoop final : public Engine {
 public:
  EngineLoop(const EngineOptions& options, const Clock* clock);
  ~EngineLoop() override;

  uint64_t NextRequestId() override { return ++last_request_id_; }
  Status Submit(Request request, std::shared_ptr<RequestSink> sink) override;
  void Cancel(uint64_t id) override { inbox_.Cancel(id); }
  StatusOr<uint64_t> Join(std::shared_ptr<WorkerGroup> group) override;
  void OnResult(StepResult result) override { inbox_.OnResult(std::move(result)); }
  void OnGroupLost(uint64_t epoch, Status reason) override;
  void StartDrain() override { inbox_.StartDrain(); }
  bool Drained() const override { return inbox_.Drained(); }
  EngineStats stats() const override { return inbox_.stats(); }
  int64_t RunOnce() override;
  void Start() override;
  void Stop() override;

 private:
  // All of these: engine thread.
  void TakeMessages(int64_t now_us);
  void Handle(SubmitMessage message, int64_t now_us);
  void Handle(CancelMessage message, int64_t now_us);
  void Handle(JoinMessage message, int64_t now_us);
  void Handle(StepResult result, int64_t now_us);
  void Handle(LostMessage message, int64_t now_us);
  void SubmitPlans(int64_t now_us);
  void CloseGroup(const Status& reason);
  void ForgetGroup();
  void DeliverEvents();
  void Report();
  int64_t StepDeadlineUs() const;
  void ShutDown();

  const EngineOptions options_;
  const Clock* const clock_;
  EngineInbox inbox_;
  std::atomic<uint64_t> last_request_id_{0};

  // Owned by the engine thread.
  Scheduler scheduler_;
  std::unordered_map<uint64_t, std::shared_ptr<RequestSink>> sinks_;  // by Request::id
  std::shared_ptr<WorkerGroup> group_;                                // null: none is joined
  uint64_t epoch_ = 0;                                                // of group_
  std::deque<int64_t> submitted_us_;                                  // of the plans in flight
  int64_t last_result_us_ = 0;
  size_t ended_ = 0;  // requests since the last Report
  uint64_t generated_tokens_ = 0;
  uint64_t steps_ = 0;

  std::thread thread_;
  bool shut_down_ = false;
};

}  // namespace hadal
