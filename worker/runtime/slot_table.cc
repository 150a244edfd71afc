#include "worker/runtime/slot_table.h"

#include <algorithm>

namespace hadal {

StepBounds BoundsOf(const StepPlan& plan) {
  StepBounds bounds{.decodes_only = true};
  for (const GroupPlan& group : plan.groups) {
    bounds.tokens = std::max(bounds.tokens, static_cast<int32_t>(group.tokens.size()));
    for (const PlanRow& row : group.rows) {
      bounds.context = std::max(bounds.context, int64_t{row.start_pos} + row.num_tokens);
      bounds.decodes_only = bounds.decodes_only && row.kind == RowKind::kDecode &&
                            row.num_tokens == 1 && row.sample && !row.prompt_logprobs;
    }
  }
  return bounds;
}

SlotTable::SlotTable(const GroupCapacity& capacity, int32_t vocab_size, int64_t max_seq_len)
    : capacity_(capacity),
      vocab_size_(vocab_size),
      max_seq_len_(max_seq_len),
      slots_(capacity.max_slots) {}

void SlotTable::Clear() { slots_.assign(slots_.size(), Slot{}); }

Status SlotTable::CheckSlot(int32_t slot, bool taken) const {
  if (slot < 0 || slot >= static_cast<int32_t>(slots_.size())) {
    return InvalidArgument("plan names slot {}, the group has {}", slot, slots_.size());
  }
  if (slots_[slot].taken != taken) {
    return InvalidArgument("plan uses slot {}, which is {}", slot, taken ? "free" : "taken");
  }
  return OkStatus();
}

Status SlotTable::ApplyDelta(const BlockTableDelta& delta) {
  HADAL_RETURN_IF_ERROR(CheckSlot(delta.slot, true));
  std::vector<int32_t>& blocks = slots_[delta.slot].blocks;
  if (delta.first_index < 0 || delta.first_index > static_cast<int32_t>(blocks.size())) {
    return InvalidArgument("plan writes block {} of slot {}, which holds {}", delta.first_index,
                           delta.slot, blocks.size());
  }
  for (int32_t block : delta.blocks) {
    if (block < 0 || block >= capacity_.kv_blocks) {
      return InvalidArgument("plan gives slot {} KV block {}, the group has {}", delta.slot, block,
                             capacity_.kv_blocks);
    }
  }
  blocks.resize(delta.first_index);
  blocks.insert(blocks.end(), delta.blocks.begin(), delta.blocks.end());
  return OkStatus();
}

Status SlotTable::AppendRow(const PlanRow& row, const int32_t* tokens, Batch* batch) {
  HADAL_RETURN_IF_ERROR(CheckSlot(row.slot, true));
  Slot& slot = slots_[row.slot];
  const int64_t end = int64_t{row.start_pos} + row.num_tokens;
  if (end > max_seq_len_ || end > static_cast<int64_t>(slot.blocks.size()) * kBlockSize) {
    return InvalidArgument("plan computes position {} of slot {}, which has {} KV blocks", end - 1,
                           row.slot, slot.blocks.size());
  }
  if (!batch->rows.empty() && row.kind == RowKind::kDecode &&
      batch->rows.back().kind == RowKind::kPrefill) {
    return InvalidArgument("plan has a decode row of slot {} after a prefill row", row.slot);
  }
  const auto first = static_cast<int32_t>(batch->tokens.size());
  for (int32_t i = 0; i < row.num_tokens; ++i) {
    const bool last_sampled =
        tokens[i] == kSampledToken && row.kind == RowKind::kDecode && slot.sampled;
    if (!last_sampled && (tokens[i] < 0 || tokens[i] >= vocab_size_)) {
      return InvalidArgument("plan has token {} in slot {}, the vocabulary ends at {}", tokens[i],
                             row.slot, vocab_size_);
    }
    batch->tokens.push_back(last_sampled ? -1 - row.slot : tokens[i]);
    batch->positions.push_back(row.start_pos + i);
    // The last token of a prompt chunk is followed by next_token, when there is one.
    const bool followed = i + 1 < row.num_tokens || row.next_token >= 0;
    const bool sampled = row.sample && i + 1 == row.num_tokens;
    if ((row.prompt_logprobs && followed) || sampled) batch->logit_tokens.push_back(first + i);
  }
  slot.sampled = slot.sampled || row.sample;
  batch->rows.push_back({.first_token = first,
                         .num_tokens = row.num_tokens,
                         .start_pos = row.start_pos,
                         .kind = row.kind,
                         .blocks = slot.blocks.data(),
                         .sequence = slot.sequence});
  return OkStatus();
}

Status SlotTable::Apply(const GroupPlan& plan, Batch* batch) {
  *batch = Batch{};
  for (int32_t slot : plan.leaves) {
    HADAL_RETURN_IF_ERROR(CheckSlot(slot, true));
    slots_[slot] = Slot{};
  }
  for (const SlotEnter& enter : plan.enters) {
    HADAL_RETURN_IF_ERROR(CheckSlot(enter.slot, false));
    slots_[enter.slot] = Slot{
        .taken = true, .sampling = enter.sampling, .blocks = {}, .sequence = ++sequences_};
  }
  for (const BlockTableDelta& delta : plan.block_tables) HADAL_RETURN_IF_ERROR(ApplyDelta(delta));
  if (static_cast<int64_t>(plan.tokens.size()) > capacity_.max_step_tokens) {
    return InvalidArgument("plan has {} tokens, the group takes {}", plan.tokens.size(),
                           capacity_.max_step_tokens);
  }
  const int32_t* tokens = plan.tokens.data();
  for (const PlanRow& row : plan.rows) {
    if (row.sample && row.next_token >= 0) {
      return InvalidArgument("plan samples in slot {} before its prompt ends", row.slot);
    }
    if (row.next_token >= vocab_size_) {
      return InvalidArgument("plan has next_token {} in slot {}, the vocabulary ends at {}",
                             row.next_token, row.slot, vocab_size_);
    }
    HADAL_RETURN_IF_ERROR(AppendRow(row, tokens, batch));
    tokens += row.num_tokens;
  }
  return OkStatus();
}

}  // namespace hadal
