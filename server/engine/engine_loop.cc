#include "server/engine/engine_loop.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace hadal {

std::unique_ptr<Engine> MakeEngine(const EngineOptions& options, const Clock* clock) {
  return std::make_unique<EngineLoop>(options, clock);
}

EngineLoop::EngineLoop(const EngineOptions& options, const Clock* clock)
    : options_(options),
      clock_(clock),
      inbox_(options),
      scheduler_(options.step_token_budget, options.vocab_limit) {}

EngineLoop::~EngineLoop() { Stop(); }

Status EngineLoop::Submit(Request request, std::shared_ptr<RequestSink> sink) {
  if (request.arrival_us == 0) request.arrival_us = clock_->NowUs();
  return inbox_.Submit(std::move(request), std::move(sink));
}

StatusOr<uint64_t> EngineLoop::Join(std::shared_ptr<WorkerGroup> group) {
  return inbox_.Join(std::move(group));
}

void EngineLoop::OnGroupLost(uint64_t epoch, Status reason) {
  inbox_.OnGroupLost(epoch, std::move(reason));
}

int64_t EngineLoop::RunOnce() {
  const int64_t now_us = clock_->NowUs();
  TakeMessages(now_us);
  scheduler_.ExpireDeadlines(now_us);
  if (now_us >= StepDeadlineUs()) {
    CloseGroup(Status(
        StatusCode::kDeadlineExceeded,
        fmt::format("a step was not answered within {} ms", options_.step_deadline_us / 1000)));
  }
  SubmitPlans(now_us);  // before the events: workers should not wait for the delivery of text
  DeliverEvents();
  Report();
  const int64_t wake_us = std::min(scheduler_.next_deadline_us(), StepDeadlineUs());
  return wake_us == INT64_MAX ? INT64_MAX : std::max<int64_t>(0, wake_us - clock_->NowUs());
}

void EngineLoop::TakeMessages(int64_t now_us) {
  for (EngineMessage& message : inbox_.Take()) {
    std::visit([&](auto&& content) { Handle(std::move(content), now_us); }, std::move(message));
  }
}

void EngineLoop::Handle(SubmitMessage message, int64_t) {
  const uint64_t id = message.request.id;
  HADAL_CHECK(sinks_.emplace(id, std::move(message.sink)).second, "request id {} is in use", id);
  scheduler_.Add(std::move(message.request));
}

void EngineLoop::Handle(CancelMessage message, int64_t) {
  scheduler_.Cancel(message.id);
  ended_ += sinks_.erase(message.id);
}

void EngineLoop::Handle(JoinMessage message, int64_t now_us) {
  HADAL_CHECK(group_ == nullptr, "epoch {} joined during epoch {}", message.epoch, epoch_);
  group_ = std::move(message.group);
  epoch_ = message.epoch;
  last_result_us_ = now_us;
  const GroupCapacity& capacity = group_->capacity();
  spdlog::info(
      "worker group joined: epoch {}, {} x {} ranks, {} KV blocks and {} slots per "
      "data-parallel group",
      epoch_, capacity.tensor_parallel, capacity.data_parallel, capacity.kv_blocks,
      capacity.max_slots);
  scheduler_.GroupJoined(epoch_, capacity);
}

void EngineLoop::Handle(StepResult result, int64_t now_us) {
  if (group_ == nullptr || result.epoch != epoch_) return;  // of a group that was closed
  const Status status = scheduler_.Apply(result, now_us);
  if (!status.ok()) {
    CloseGroup(status);
    return;
  }
  submitted_us_.pop_front();
  last_result_us_ = now_us;
  ++steps_;
}

void EngineLoop::Handle(LostMessage message, int64_t) {
  if (group_ == nullptr || message.epoch != epoch_) return;
  spdlog::warn("worker group of epoch {} was lost: {}; {} requests wait for another", epoch_,
               message.reason.ToString(), scheduler_.num_live());
  ForgetGroup();
}

void EngineLoop::SubmitPlans(int64_t now_us) {
  if (group_ == nullptr) return;
  while (const std::optional<StepPlan> plan = scheduler_.Schedule(now_us)) {
    submitted_us_.push_back(now_us);
    group_->Submit(*plan);
  }
}

void EngineLoop::CloseGroup(const Status& reason) {
  spdlog::warn("worker group of epoch {} is closed: {}; {} requests wait for another", epoch_,
               reason.ToString(), scheduler_.num_live());
  group_->Close(reason);
  inbox_.GroupClosed(epoch_);
  ForgetGroup();
}

void EngineLoop::ForgetGroup() {
  scheduler_.GroupLost();
  group_.reset();
  submitted_us_.clear();
}

void EngineLoop::DeliverEvents() {
  for (RequestEvent& event : scheduler_.TakeEvents()) {
    generated_tokens_ += event.tokens.size();
    const auto it = sinks_.find(event.id);
    if (it == sinks_.end()) continue;  // cancelled after the event was made
    const bool last = event.finish.has_value();
    it->second->OnEvent(std::move(event));
    if (!last) continue;
    sinks_.erase(it);
    ++ended_;
  }
}

void EngineLoop::Report() {
  EngineStats stats;
  stats.ready = group_ != nullptr;
  if (group_ != nullptr) {
    stats.epoch = epoch_;
    stats.capacity = group_->capacity();
  }
  stats.running = scheduler_.num_running();
  stats.waiting = scheduler_.num_waiting();
  stats.free_blocks = scheduler_.available_blocks();
  stats.total_blocks = scheduler_.total_blocks();
  stats.generated_tokens = generated_tokens_;
  stats.steps = steps_;
  inbox_.Report(stats, scheduler_.waiting_prompt_tokens(), std::exchange(ended_, 0));
}

// When the oldest plan in flight must have been answered; it runs since the one before was.
int64_t EngineLoop::StepDeadlineUs() const {
  if (submitted_us_.empty()) return INT64_MAX;
  return std::max(submitted_us_.front(), last_result_us_) + options_.step_deadline_us;
}

void EngineLoop::Start() {
  HADAL_CHECK(!thread_.joinable() && !shut_down_, "the engine runs or has stopped");
  thread_ = std::thread([this] {
    while (inbox_.Wait(RunOnce())) {
    }
  });
}

void EngineLoop::Stop() {
  inbox_.Stop();
  if (thread_.joinable()) thread_.join();
  ShutDown();  // the thread has ended: this one owns its state now
}

void EngineLoop::ShutDown() {
  if (std::exchange(shut_down_, true)) return;
  TakeMessages(clock_->NowUs());
  const Status reason = Unavailable("the server is shutting down");
  if (group_ != nullptr) CloseGroup(reason);
  scheduler_.FailAll(reason);
  DeliverEvents();
  Report();
}

}  // namespace hadal
