// How a plan is made: running streams first, then prompts that have begun, then admissions.

#include <algorithm>
#include <numeric>
#include <utility>

#include "common/check.h"
#include "server/scheduler/scheduler.h"

namespace hadal {

std::optional<StepPlan> Scheduler::Schedule(int64_t now_us) {
  if (groups_.empty() || in_flight_.size() >= kMaxPlansInFlight) return std::nullopt;
  PlanInFlight record{.epoch = epoch_, .step = last_step_ + 1};
  std::vector<GroupDraft> drafts = PlanRows(now_us, &record.decoding);
  if (std::ranges::none_of(drafts, &GroupDraft::has_rows)) return std::nullopt;

  StepPlan plan{.epoch = epoch_, .step = ++last_step_};
  for (size_t g = 0; g < groups_.size(); ++g) {
    record.prompt_tokens = std::max(record.prompt_tokens, drafts[g].prompt_tokens());
    PlanInFlight::Group& kept = record.groups.emplace_back();
    plan.groups.push_back(drafts[g].Finish(std::exchange(groups_[g].leaves, {}), &kept.owners));
    kept.rows = plan.groups.back().rows;
  }
  prefill_budget_.OnPlanned(record.decoding, record.prompt_tokens);
  in_flight_.push_back(std::move(record));
  return plan;
}

std::vector<GroupDraft> Scheduler::PlanRows(int64_t now_us, bool* decoding) {
  std::vector<GroupDraft> drafts(groups_.size(), GroupDraft(step_tokens_));
  preempted_now_.clear();
  if (!suspects_.empty()) MakeWay();
  for (size_t g = 0; g < groups_.size(); ++g) PlanDecodes(&groups_[g], &drafts[g]);
  // The groups step together, so a stream in one of them is slowed by a prompt in any.
  *decoding = std::ranges::any_of(drafts, &GroupDraft::has_rows);
  const int32_t chunk = prefill_budget_.NextChunk(*decoding);
  for (size_t g = 0; g < groups_.size(); ++g) PlanChunks(&groups_[g], &drafts[g], chunk);
  Admit(&drafts, chunk, now_us);
  return drafts;
}

void Scheduler::PlanDecodes(GroupState* group, GroupDraft* draft) {
  std::vector<Sequence*> streams;  // oldest first; a victim of GrowTable is never before its cause
  for (const auto& [order, sequence] : group->running) {
    if (sequence->decoding()) streams.push_back(sequence);
  }
  for (Sequence* sequence : streams) {
    if (sequence->running() && GrowTable(group, draft, sequence)) draft->AddRow(sequence, 1);
  }
}

// Makes room for the next token. False when the sequence itself had to give way.
bool Scheduler::GrowTable(GroupState* group, GroupDraft* draft, Sequence* sequence) {
  const auto held = static_cast<int32_t>(sequence->blocks.size());
  if (BlocksFor(sequence->computed + 1) <= held) return true;
  while (group->cache.available() == 0) {
    Sequence* latest = group->running.rbegin()->second;
    Preempt(group, latest);
    if (latest == sequence) return false;
  }
  group->cache.Allocate(1, &sequence->blocks);
  draft->SendBlocks(*sequence, held);
  return true;
}

void Scheduler::Preempt(GroupState* group, Sequence* victim) {
  group->Remove(victim);
  Wait(victim);
  preempted_now_.insert(victim->order);
}

void Scheduler::PlanChunks(GroupState* group, GroupDraft* draft, int32_t chunk) {
  for (const auto& [order, sequence] : group->running) {
    const int32_t limit = std::min(chunk - draft->prompt_tokens(), draft->tokens_left());
    if (limit <= 0) return;
    if (sequence->catching_up()) draft->AddRow(sequence, sequence->NextRowTokens(limit));
  }
}

// While there are suspects at most one sequence runs. If that is not a suspect any more, it gives way
// to the next one.
void Scheduler::MakeWay() {
  for (GroupState& group : groups_) {
    if (group.running.empty()) continue;
    Sequence* sequence = group.running.begin()->second;
    if (sequence->order != *suspects_.begin()) Preempt(&group, sequence);
  }
}

// Null: nobody. A suspect enters only when no row of another is in flight, not even of a request that
// has ended, so that whatever happens from then on is its own doing.
Sequence* Scheduler::NextToAdmit() {
  if (waiting_.empty()) return nullptr;
  if (suspects_.empty()) return waiting_.begin()->second;
  Sequence* suspect = Find(*suspects_.begin());
  return suspect->running() || !in_flight_.empty() ? nullptr : suspect;
}

// First come, first served: nobody overtakes the head of the queue, unless the workers were lost.
void Scheduler::Admit(std::vector<GroupDraft>* drafts, int32_t chunk, int64_t now_us) {
  while (Sequence* head = NextToAdmit()) {
    // With results to come, its tokens are not known yet.
    if (preempted_now_.contains(head->order) || head->rows_in_flight > 0) return;
    bool placed = false;
    for (const int32_t g : GroupsByLoad()) {
      GroupDraft& draft = (*drafts)[g];
      const int32_t limit = std::min(chunk - draft.prompt_tokens(), draft.tokens_left());
      if (limit <= 0 || !TryPlace(head, g, &draft, now_us)) continue;
      draft.AddRow(head, head->NextRowTokens(limit));
      placed = true;
      break;
    }
    if (!placed) return;
  }
}

bool Scheduler::TryPlace(Sequence* sequence, int32_t group_index, GroupDraft* draft,
                         int64_t now_us) {
  GroupState& group = groups_[group_index];
  if (group.free_slots.empty()) return false;
  std::vector<int32_t> blocks;
  // Log-probabilities need the logits of every prompt position, which no cache holds.
  if (!sequence->needs_prompt_logprobs()) {
    blocks = group.cache.AcquirePrefix(sequence->request.prompt);
  }
  const auto cached = static_cast<int32_t>(blocks.size());
  const int32_t wanted = BlocksFor(sequence->known());
  int32_t headroom = 0;
  if (!group.running.empty()) {
    headroom = group.Headroom() + (wanted < BlocksFor(sequence->max_kv_tokens()) ? 1 : 0);
  }
  if (group.cache.available() < wanted - cached + headroom) {
    group.cache.Release(blocks);
    return false;
  }
  group.cache.Allocate(wanted - cached, &blocks);

  StopWaiting(*sequence);
  sequence->group = group_index;
  sequence->slot = group.free_slots.back();
  group.free_slots.pop_back();
  sequence->blocks = std::move(blocks);
  sequence->computed = cached * kBlockSize;
  sequence->prompt_logprobs.clear();
  group.running.emplace(sequence->order, sequence);
  if (sequence->timing.scheduled_us == 0) {
    sequence->timing.scheduled_us = now_us;
    sequence->timing.cached_tokens = sequence->computed;
  }
  draft->Enter(*sequence);
  draft->SendBlocks(*sequence, 0);
  return true;
}

std::vector<int32_t> Scheduler::GroupsByLoad() const {
  std::vector<int32_t> order(groups_.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [this](int32_t a, int32_t b) {
    const GroupState& left = groups_[a];
    const GroupState& right = groups_[b];
    return std::pair(left.running.size(), -left.cache.available()) <
           std::pair(right.running.size(), -right.cache.available());
  });
  return order;
}

}  // namespace hadal
