#pragma once

#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "server/scheduler/scheduler.h"
#include "tests/server/scheduler/plan_executor.h"
#include "tests/support/catch.h"

namespace hadal::testing {

inline std::vector<int32_t> Tokens(int32_t first, int32_t count) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// A scheduler, workers that execute its plans when told to, and all news so far.
class Harness {
 public:
  explicit Harness(const GroupCapacity& capacity, int32_t budget = 64) : scheduler(budget) {
    Join(capacity);
  }

  void Join(const GroupCapacity& capacity) {
    executor = std::make_unique<PlanExecutor>(capacity, ++epoch);
    in_flight.clear();
    scheduler.GroupJoined(epoch, capacity);
  }

  Request Add(uint64_t id, std::vector<int32_t> prompt, int32_t max_tokens) {
    Request request{.id = id, .prompt = std::move(prompt), .max_tokens = max_tokens};
    request.sampling.seed = id;
    scheduler.Add(request);
    return request;
  }

  // The next plan, empty when there is none.
  StepPlan Plan() {
    std::optional<StepPlan> plan = scheduler.Schedule(++now_us);
    if (!plan) return {};
    in_flight.push_back(executor->Execute(*plan));
    return *plan;
  }

  void Answer(int64_t step_us = 1000) {
    in_flight.front().step_us = step_us;
    const Status status = scheduler.Apply(in_flight.front(), ++now_us);
    REQUIRE(status.ok());
    in_flight.pop_front();
    for (RequestEvent& event : scheduler.TakeEvents()) {
      for (const GeneratedToken& token : event.tokens) tokens[event.id].push_back(token.token);
      if (event.finish) finished[event.id] = *event.finish;
      last[event.id] = std::move(event);
    }
  }

  void RunDry() {
    for (int i = 0; i < 10000; ++i) {
      while (!Plan().groups.empty()) {
      }
      if (in_flight.empty()) return;
      Answer();
    }
    FAIL("no end");
  }

  Scheduler scheduler;
  std::unique_ptr<PlanExecutor> executor;
  std::deque<StepResult> in_flight;
  uint64_t epoch = 0;
  int64_t now_us = 0;
  std::map<uint64_t, std::vector<int32_t>> tokens;
  std::map<uint64_t, RequestEvent::Finish> finished;
  std::map<uint64_t, RequestEvent> last;
};

inline GroupCapacity Capacity(int32_t kv_blocks, int32_t max_slots = 8, int32_t data_parallel = 1) {
  return {.data_parallel = data_parallel,
          .kv_blocks = kv_blocks,
          .max_slots = max_slots,
          .max_step_tokens = 1000};
}

inline const std::vector<PlanRow>& Rows(const StepPlan& plan) { return plan.groups.at(0).rows; }

}  // namespace hadal::testing
