#include "server/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace hadal {

Scheduler::Scheduler(int32_t step_token_budget, int32_t vocab_limit)
    : step_token_budget_(step_token_budget),
      vocab_limit_(vocab_limit) {
  HADAL_CHECK(step_token_budget >= 1, "step_token_budget {}", step_token_budget);
}

void Scheduler::Add(Request request) {
  HADAL_CHECK(!request.prompt.empty() && request.max_tokens >= 1, "request {} is not valid",
              request.id);
  const uint64_t order = next_order_++;
  HADAL_CHECK(orders_.emplace(request.id, order).second, "request id {} is in use", request.id);
  Sequence& sequence = sequences_[order];
  sequence.order = order;
  sequence.timing.arrival_us = request.arrival_us;
  sequence.request = std::move(request);
  if (sequence.request.deadline_us != INT64_MAX) {
    deadlines_.emplace(sequence.request.deadline_us, order);
  }
  Wait(&sequence);
  FitOrFail(&sequence);
}

void Scheduler::Cancel(uint64_t id) {
  if (const auto it = orders_.find(id); it != orders_.end()) Erase(Find(it->second));
}

void Scheduler::ExpireDeadlines(int64_t now_us) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now_us) {
    Sequence* sequence = Find(deadlines_.begin()->second);
    Fail(sequence, Status(StatusCode::kDeadlineExceeded,
                          fmt::format("the deadline passed after {} of at most {} tokens",
                                      sequence->num_generated(), sequence->request.max_tokens)));
  }
}

void Scheduler::FailAll(const Status& status) {
  while (!sequences_.empty()) Fail(&sequences_.begin()->second, status);
}

void Scheduler::GroupJoined(uint64_t epoch, const GroupCapacity& capacity) {
  HADAL_CHECK(groups_.empty(), "epoch {} is joined", epoch_);
  HADAL_CHECK(capacity.data_parallel >= 1 && capacity.kv_blocks >= 1 && capacity.max_slots >= 1 &&
                  capacity.max_step_tokens >= 1,
              "capacity of epoch {} is not valid", epoch);
  epoch_ = epoch;
  last_step_ = 0;
  step_tokens_ = std::min(step_token_budget_, capacity.max_step_tokens);
  prefill_budget_ = PrefillBudget(step_tokens_);
  // No more sequences than a step has tokens: then every running stream gets its token in every
  // step, and one that is still at its prompt gets at least one as well.
  const int32_t slots = std::min(capacity.max_slots, step_tokens_);
  for (int32_t g = 0; g < capacity.data_parallel; ++g)
    groups_.emplace_back(capacity.kv_blocks, slots);

  std::vector<Sequence*> waiting;
  for (const auto& [order, sequence] : waiting_) waiting.push_back(sequence);
  for (Sequence* sequence : waiting) FitOrFail(sequence);
}

void Scheduler::GroupLost() {
  for (GroupState& group : groups_) {
    while (!group.running.empty()) {
      Sequence* sequence = group.running.begin()->second;
      group.Remove(sequence);
      Wait(sequence);
    }
  }
  groups_.clear();
  Blame();
  in_flight_.clear();
}

// Whoever had rows in flight may be the cause.
void Scheduler::Blame() {
  for (const PlanInFlight& plan : in_flight_) {
    for (const PlanInFlight::Group& group : plan.groups) {
      for (size_t i = 0; i < group.rows.size(); ++i) {
        Sequence* sequence = Find(group.owners[i]);
        if (sequence == nullptr) continue;
        const int32_t end = group.rows[i].start_pos + group.rows[i].num_tokens;
        sequence->lost_at = std::max(sequence->lost_at, end);
      }
    }
  }
  for (auto it = sequences_.begin(); it != sequences_.end();) {
    Sequence* sequence = &(it++)->second;
    if (sequence->rows_in_flight > 0) ++sequence->losses;
    sequence->rows_in_flight = 0;
    sequence->samples_in_flight = 0;
    if (sequence->losses >= kLossesOfSuspect) suspects_.insert(sequence->order);
    if (sequence->losses >= kLossesToFail) {
      Fail(sequence, Internal("the workers were lost {} times while this request ran, the last time "
                              "with no other beside it",
                              sequence->losses));
    }
  }
}

void Scheduler::Acquit(Sequence* sequence) {
  sequence->losses = 0;
  sequence->lost_at = 0;
  suspects_.erase(sequence->order);
}

std::vector<RequestEvent> Scheduler::TakeEvents() { return std::exchange(events_, {}); }

int32_t Scheduler::num_running() const {
  return static_cast<int32_t>(sequences_.size() - waiting_.size());
}

int64_t Scheduler::available_blocks() const {
  int64_t blocks = 0;
  for (const GroupState& group : groups_) blocks += group.cache.available();
  return blocks;
}

int64_t Scheduler::total_blocks() const {
  int64_t blocks = 0;
  for (const GroupState& group : groups_) blocks += group.cache.num_blocks();
  return blocks;
}

int64_t Scheduler::next_deadline_us() const {
  return deadlines_.empty() ? INT64_MAX : deadlines_.begin()->first;
}

Sequence* Scheduler::Find(uint64_t order) {
  const auto it = sequences_.find(order);
  return it == sequences_.end() ? nullptr : &it->second;
}

void Scheduler::Wait(Sequence* sequence) {
  waiting_.emplace(sequence->order, sequence);
  waiting_prompt_tokens_ += sequence->prompt_length();
}

void Scheduler::StopWaiting(const Sequence& sequence) {
  waiting_.erase(sequence.order);
  waiting_prompt_tokens_ -= sequence.prompt_length();
}

void Scheduler::Erase(Sequence* sequence) {
  if (sequence->running()) {
    groups_[sequence->group].Remove(sequence);
  } else {
    StopWaiting(*sequence);
  }
  deadlines_.erase({sequence->request.deadline_us, sequence->order});
  orders_.erase(sequence->request.id);
  suspects_.erase(sequence->order);
  sequences_.erase(sequence->order);
}

void Scheduler::Fail(Sequence* sequence, Status status) {
  RequestEvent event = EventOf(*sequence);
  event.finish = {.reason = FinishReason::kFailed, .status = std::move(status)};
  events_.push_back(std::move(event));
  Erase(sequence);
}

void Scheduler::FitOrFail(Sequence* sequence) {
  if (groups_.empty()) return;
  const int32_t total = groups_.front().cache.num_blocks();
  Request& request = sequence->request;
  if (request.max_tokens_is_default) {
    // The last token needs no KV.
    const int64_t held = int64_t{total} * kBlockSize + 1 - sequence->prompt_length();
    request.max_tokens = static_cast<int32_t>(
        std::clamp<int64_t>(held, sequence->num_generated() + 1, request.max_tokens));
  }
  const int32_t needed = BlocksFor(sequence->max_kv_tokens());
  if (needed <= total) return;
  Fail(sequence,
       FailedPrecondition(
           "a prompt of {} tokens with max_tokens {} needs {} KV blocks of {} tokens, "
           "and the workers have {}; shorten it, lower max_tokens or start the workers with more",
           sequence->prompt_length(), request.max_tokens, needed, kBlockSize, total));
}

}  // namespace hadal
