#pragma once

#include <cstdint>
#include <deque>
#include <stdexcept>
#include <utility>

#include "server/engine/worker_group.h"
#include "tests/server/scheduler/plan_executor.h"

namespace hadal::testing {

class SimulatedClock final : public Clock {
 public:
  int64_t NowUs() const override { return now_us; }
  int64_t now_us = 1;
};

// A worker group that executes plans at once and hands out the results when the test asks.
class FakeWorkerGroup final : public WorkerGroup {
 public:
  // `epoch`: the one that Join will return.
  FakeWorkerGroup(const GroupCapacity& capacity, uint64_t epoch)
      : executor(capacity, epoch), capacity_(capacity) {}

  const GroupCapacity& capacity() const override { return capacity_; }
  void Submit(const StepPlan& plan) override {
    if (closed) throw std::logic_error("a plan after the end");
    if (results.size() == 2) throw std::logic_error("three plans in flight");
    plans.push_back(plan);
    results.push_back(executor.Execute(plan));
  }
  void Close(const Status& reason) override {
    closed = true;
    close_reason = reason;
  }

  StepResult TakeResult() {
    StepResult result = std::move(results.front());
    results.pop_front();
    plans.pop_front();
    return result;
  }

  PlanExecutor executor;
  std::deque<StepPlan> plans;      // in flight
  std::deque<StepResult> results;  // of them
  bool closed = false;
  Status close_reason;

 private:
  const GroupCapacity capacity_;
};

// Everything that one request was told, and whether the order of it is allowed.
struct RecordingSink final : RequestSink {
  void OnEvent(RequestEvent event) override {
    if (finish) throw std::logic_error("an event after the last one");
    if (!event.prompt_logprobs.empty()) {
      if (!prompt_logprobs.empty() || !tokens.empty()) {
        throw std::logic_error("prompt_logprobs twice or after a token");
      }
      prompt_logprobs = event.prompt_logprobs;
    }
    for (const GeneratedToken& token : event.tokens) tokens.push_back(token.token);
    finish = event.finish;
    timing = event.timing;
    ++events;
  }

  std::vector<int32_t> tokens;
  std::vector<float> prompt_logprobs;
  std::optional<RequestEvent::Finish> finish;
  RequestTiming timing;
  int events = 0;
};

}  // namespace hadal::testing
