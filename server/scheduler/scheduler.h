#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "common/status.h"
#include "common/step_plan.h"
#include "server/scheduler/group_state.h"
#include "server/scheduler/prefill_budget.h"
#include "server/scheduler/request.h"
#include "server/scheduler/result_check.h"
#include "server/scheduler/sequence.h"

namespace hadal {

// Decides what runs in each step. Pure: no thread, no clock, no I/O; it is told the time, and its
// news is fetched with TakeEvents. README.md states what it guarantees.
class Scheduler {
 public:
  static constexpr size_t kMaxPlansInFlight = 2;
  static constexpr int32_t kLossesOfSuspect = 2;  // in a row: from then on it runs alone
  static constexpr int32_t kLossesToFail = 3;     // the last of them alone

  // `vocab_limit`: workers draw ids below it.
  explicit Scheduler(int32_t step_token_budget, int32_t vocab_limit = INT32_MAX);

  // The request waits from now on. REQUIRES: no live request has its id.
  void Add(Request request);
  // Its blocks are free at once and its slot leaves with the next plan; no event. Unknown ids are
  // ignored: the request may have finished meanwhile.
  void Cancel(uint64_t id);
  void ExpireDeadlines(int64_t now_us);
  void FailAll(const Status& status);

  // REQUIRES: no group is joined; the capacity's numbers are positive.
  void GroupJoined(uint64_t epoch, const GroupCapacity& capacity);
  // All running requests wait again, with the tokens that they have, but for one that must have been
  // the cause, which fails.
  void GroupLost();

  // The next plan, nothing while there is none to make: no group, no work, two plans in flight, or
  // all work depends on results to come.
  std::optional<StepPlan> Schedule(int64_t now_us);
  // The result of the oldest plan in flight. An error means that it is not that: nothing changed,
  // and the group cannot be trusted any more.
  Status Apply(const StepResult& result, int64_t now_us);

  std::vector<RequestEvent> TakeEvents();

  size_t plans_in_flight() const { return in_flight_.size(); }
  int32_t num_running() const;
  int32_t num_waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int64_t waiting_prompt_tokens() const { return waiting_prompt_tokens_; }
  size_t num_live() const { return sequences_.size(); }
  int64_t available_blocks() const;
  int64_t total_blocks() const;
  // INT64_MAX: none.
  int64_t next_deadline_us() const;

 private:
  // scheduler.cc
  Sequence* Find(uint64_t order);
  void Wait(Sequence* sequence);
  void StopWaiting(const Sequence& sequence);
  void Erase(Sequence* sequence);
  void Fail(Sequence* sequence, Status status);
  void Blame();
  void Acquit(Sequence* sequence);
  void FitOrFail(Sequence* sequence);

  // scheduler_plan.cc
  std::vector<GroupDraft> PlanRows(int64_t now_us, bool* decoding);
  void PlanDecodes(GroupState* group, GroupDraft* draft);
  bool GrowTable(GroupState* group, GroupDraft* draft, Sequence* sequence);
  void Preempt(GroupState* group, Sequence* victim);
  void PlanChunks(GroupState* group, GroupDraft* draft, int32_t chunk);
  void MakeWay();
  Sequence* NextToAdmit();
  void Admit(std::vector<GroupDraft>* drafts, int32_t chunk, int64_t now_us);
  bool TryPlace(Sequence* sequence, int32_t group_index, GroupDraft* draft, int64_t now_us);
  std::vector<int32_t> GroupsByLoad() const;

  // scheduler_apply.cc
  void ApplySample(Sequence* sequence, const SampleResult& sample, int64_t now_us);
  void Publish(Sequence* sequence);
  RequestEvent EventOf(const Sequence& sequence) const;

  const int32_t step_token_budget_;
  const int32_t vocab_limit_;
  std::map<uint64_t, Sequence> sequences_;            // by order; addresses stay
  std::unordered_map<uint64_t, uint64_t> orders_;     // by Request::id
  std::map<uint64_t, Sequence*> waiting_;             // by order
  std::set<std::pair<int64_t, uint64_t>> deadlines_;  // (deadline, order) of requests with one
  std::set<uint64_t> suspects_;  // orders; while there are any, only the first of them may run
  int64_t waiting_prompt_tokens_ = 0;
  uint64_t next_order_ = 1;
  std::vector<RequestEvent> events_;

  // Of the joined worker group; groups_ is empty while there is none.
  uint64_t epoch_ = 0;
  uint64_t last_step_ = 0;
  int32_t step_tokens_ = 0;
  std::vector<GroupState> groups_;  // [data_parallel]
  std::deque<PlanInFlight> in_flight_;
  std::set<uint64_t> preempted_now_;  // by the plan in the making
  PrefillBudget prefill_budget_{1};
};

}  // namespace hadal
