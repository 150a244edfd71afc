#include "server/scheduler/group_state.h"

#include <utility>

#include "common/check.h"

namespace hadal {

GroupState::GroupState(int32_t kv_blocks, int32_t num_slots) : cache(kv_blocks) {
  for (int32_t slot = num_slots - 1; slot >= 0; --slot) free_slots.push_back(slot);
}

int32_t GroupState::Headroom() const {
  int32_t blocks = 0;
  for (const auto& [order, sequence] : running) {
    const auto held = static_cast<int32_t>(sequence->blocks.size());
    if (held < BlocksFor(sequence->max_kv_tokens())) ++blocks;
  }
  return blocks;
}

void GroupState::Remove(Sequence* sequence) {
  cache.Release(sequence->blocks);
  leaves.push_back(sequence->slot);
  free_slots.push_back(sequence->slot);
  running.erase(sequence->order);
  sequence->blocks.clear();
  sequence->group = -1;
  sequence->slot = -1;
  sequence->computed = 0;
  sequence->published = false;
}

void GroupDraft::Enter(const Sequence& sequence) {
  plan_.enters.push_back({sequence.slot, sequence.request.sampling});
}

void GroupDraft::SendBlocks(const Sequence& sequence, int32_t first_index) {
  plan_.block_tables.push_back(
      {sequence.slot, first_index,
       std::vector<int32_t>(sequence.blocks.begin() + first_index, sequence.blocks.end())});
}

void GroupDraft::AddRow(Sequence* sequence, int32_t num_tokens) {
  const int32_t start = sequence->computed;
  const int32_t end = start + num_tokens;
  const int32_t prompt_length = sequence->prompt_length();
  const bool prompt = start < prompt_length;
  HADAL_CHECK(num_tokens >= 1 && num_tokens <= tokens_left_ &&
                  end <= (prompt ? prompt_length : sequence->length()),
              "row [{}, {}) of a sequence of {} + {} tokens", start, end, prompt_length,
              sequence->length() - prompt_length);

  PlanRow row{.slot = sequence->slot, .start_pos = start, .num_tokens = num_tokens};
  row.kind = prompt ? RowKind::kPrefill : RowKind::kDecode;
  row.sample = end == sequence->length();
  if (prompt && sequence->needs_prompt_logprobs() && start + 1 < prompt_length) {
    row.prompt_logprobs = true;
    row.next_token = end < prompt_length ? sequence->request.prompt[end] : -1;
  }
  tokens_left_ -= num_tokens;
  if (!sequence->decoding()) prompt_tokens_ += num_tokens;

  Rows& rows = prompt ? prefill_ : decode_;
  rows.rows.push_back(row);
  rows.owners.push_back(sequence->order);
  for (int32_t i = start; i < end; ++i) rows.tokens.push_back(sequence->TokenAt(i));

  sequence->computed = end;
  ++sequence->rows_in_flight;
  if (row.sample) ++sequence->samples_in_flight;
}

GroupPlan GroupDraft::Finish(std::vector<int32_t> leaves, std::vector<uint64_t>* owners) {
  const auto append = [](const auto& from, auto* to) {
    to->insert(to->end(), from.begin(), from.end());
  };
  *owners = std::move(decode_.owners);
  append(prefill_.owners, owners);
  GroupPlan plan = std::move(plan_);
  plan.leaves = std::move(leaves);
  plan.rows = std::move(decode_.rows);
  append(prefill_.rows, &plan.rows);
  plan.tokens = std::move(decode_.tokens);
  append(prefill_.tokens, &plan.tokens);
  return plan;
}

}  // namespace hadal
