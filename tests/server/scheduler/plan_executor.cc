#include "tests/server/scheduler/plan_executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>

namespace hadal::testing {
namespace {

uint64_t Mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

template <typename... Args>
void Require(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) throw std::logic_error(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace

uint64_t ExtendHash(uint64_t prefix_hash, int32_t token, RowKind kind) {
  return Mix(prefix_hash * 31 + static_cast<uint64_t>(token) * 2 + (kind == RowKind::kDecode));
}

int32_t ToyNextToken(uint64_t prefix_hash, const SamplingParams& sampling) {
  const auto milli = static_cast<uint64_t>(std::lround(sampling.temperature * 1000));
  return static_cast<int32_t>(Mix(prefix_hash ^ Mix(sampling.seed + milli)) % kToyVocabulary);
}

float ToyLogprob(uint64_t prefix_hash, int32_t next_token) {
  return -static_cast<float>(Mix(prefix_hash + static_cast<uint64_t>(next_token)) % 1000) / 100;
}

std::vector<int32_t> ToyGenerate(const std::vector<int32_t>& prompt, const SamplingParams& sampling,
                                 int32_t max_tokens) {
  uint64_t hash = 0;
  for (const int32_t token : prompt) hash = ExtendHash(hash, token, RowKind::kPrefill);
  std::vector<int32_t> generated;
  while (static_cast<int32_t>(generated.size()) < max_tokens) {
    generated.push_back(ToyNextToken(hash, sampling));
    hash = ExtendHash(hash, generated.back(), RowKind::kDecode);
  }
  return generated;
}

std::vector<float> ToyPromptLogprobs(const std::vector<int32_t>& prompt) {
  std::vector<float> logprobs;
  uint64_t hash = 0;
  for (size_t i = 0; i + 1 < prompt.size(); ++i) {
    hash = ExtendHash(hash, prompt[i], RowKind::kPrefill);
    logprobs.push_back(ToyLogprob(hash, prompt[i + 1]));
  }
  return logprobs;
}

PlanExecutor::PlanExecutor(const GroupCapacity& capacity, uint64_t epoch)
    : capacity_(capacity), epoch_(epoch), groups_(capacity.data_parallel) {
  for (Group& group : groups_) {
    group.blocks.assign(capacity.kv_blocks, std::vector<Cell>(kBlockSize));
  }
}

StepResult PlanExecutor::Execute(const StepPlan& plan) {
  Require(plan.epoch == epoch_, "epoch {} instead of {}", plan.epoch, epoch_);
  Require(plan.step == last_step_ + 1, "step {} after {}", plan.step, last_step_);
  Require(plan.groups.size() == groups_.size(), "{} groups", plan.groups.size());
  last_step_ = plan.step;

  StepResult result{.epoch = plan.epoch, .step = plan.step};
  for (size_t g = 0; g < groups_.size(); ++g) {
    const GroupPlan& part = plan.groups[g];
    Group& group = groups_[g];
    ApplyTables(part, &group);
    CheckRows(part, group);
    for (auto& [id, slot] : group.slots) slot.sampled_last_step = false;
    GroupResult& out = result.groups.emplace_back();
    const int32_t* tokens = part.tokens.data();
    for (const PlanRow& row : part.rows) {
      ExecuteRow(row, tokens, &group, &out);
      tokens += row.num_tokens;
    }
  }
  return result;
}

void PlanExecutor::ApplyTables(const GroupPlan& plan, Group* group) {
  for (const int32_t slot : plan.leaves) {
    Require(group->slots.erase(slot) == 1, "slot {} leaves, but is empty", slot);
  }
  for (const SlotEnter& enter : plan.enters) {
    Require(enter.slot >= 0 && enter.slot < capacity_.max_slots, "slot {} enters", enter.slot);
    Require(group->slots.emplace(enter.slot, Slot{.sampling = enter.sampling}).second,
            "slot {} enters, but is taken", enter.slot);
    ++enters;
  }
  for (const BlockTableDelta& delta : plan.block_tables) {
    const auto it = group->slots.find(delta.slot);
    Require(it != group->slots.end(), "block table of empty slot {}", delta.slot);
    std::vector<int32_t>& table = it->second.table;
    const auto first = static_cast<size_t>(delta.first_index);
    Require(first <= table.size(), "slot {}: table written from {}, it has {}", delta.slot, first,
            table.size());
    table.resize(std::max(table.size(), first + delta.blocks.size()));
    std::ranges::copy(delta.blocks, table.begin() + delta.first_index);
    for (const int32_t block : delta.blocks) {
      Require(block >= 0 && block < capacity_.kv_blocks, "block {}", block);
    }
    Require(std::set<int32_t>(table.begin(), table.end()).size() == table.size(),
            "slot {}: a block twice in its table", delta.slot);
  }
}

void PlanExecutor::CheckRows(const GroupPlan& plan, const Group& group) const {
  std::set<int32_t> slots;
  size_t tokens = 0;
  bool prefill = false;
  for (const PlanRow& row : plan.rows) {
    Require(group.slots.contains(row.slot), "row of empty slot {}", row.slot);
    Require(slots.insert(row.slot).second, "two rows of slot {}", row.slot);
    Require(row.num_tokens >= 1, "row of {} tokens", row.num_tokens);
    prefill |= row.kind == RowKind::kPrefill;
    Require(row.kind == RowKind::kPrefill || !prefill, "a decode row after a prefill row");
    Require(row.next_token < 0 || row.prompt_logprobs, "next_token without prompt_logprobs");
    Require(!row.prompt_logprobs || row.kind == RowKind::kPrefill, "prompt_logprobs of generated");
    tokens += static_cast<size_t>(row.num_tokens);
  }
  Require(tokens == plan.tokens.size(), "{} tokens in rows of {}", plan.tokens.size(), tokens);
  Require(tokens <= static_cast<size_t>(capacity_.max_step_tokens), "{} tokens in a step", tokens);
  if (!exhausted) return;
  for (const auto& [id, slot] : group.slots) {
    Require(!slot.sampled_last_step || slots.contains(id) ||
                exhausted(slot.sampling, slot.next_position),
            "slot {} stands still at position {}", id, slot.next_position);
  }
}

uint64_t PlanExecutor::PrefixHash(const Group& group, const Slot& slot, int32_t end) const {
  uint64_t hash = 0;
  for (int32_t i = 0; i < end; ++i) {
    const Cell& cell = group.blocks[slot.table.at(i / kBlockSize)][i % kBlockSize];
    Require(cell.position == i, "position {} holds KV of position {}", i, cell.position);
    hash = ExtendHash(hash, cell.token, cell.kind);
    Require(cell.hash == hash, "position {} holds KV of another sequence", i);
  }
  return hash;
}

void PlanExecutor::Write(Group* group, int32_t slot_id, int32_t position, const Cell& cell) {
  const int32_t block = group->slots.at(slot_id).table.at(position / kBlockSize);
  for (const auto& [id, other] : group->slots) {
    const auto readable = std::min<size_t>(
        other.table.size(), (std::max(0, other.next_position) + kBlockSize - 1) / kBlockSize);
    Require(id == slot_id || std::find(other.table.begin(), other.table.begin() + readable,
                                       block) == other.table.begin() + readable,
            "slot {} writes block {}, which slot {} reads", slot_id, block, id);
  }
  group->blocks[block][position % kBlockSize] = cell;
}

void PlanExecutor::ExecuteRow(const PlanRow& row, const int32_t* tokens, Group* group,
                              GroupResult* result) {
  Slot& slot = group->slots.at(row.slot);
  if (slot.next_position < 0) {
    Require(row.start_pos % kBlockSize == 0, "first row at {}", row.start_pos);
  } else {
    Require(row.start_pos == slot.next_position, "row at {} instead of {}", row.start_pos,
            slot.next_position);
  }
  const int32_t end = row.start_pos + row.num_tokens;
  Require(end <= static_cast<int32_t>(slot.table.size()) * kBlockSize, "table too short for {}",
          end);
  if (row.kind == RowKind::kDecode && row.num_tokens > 1) ++recomputed_rows;

  uint64_t hash = PrefixHash(*group, slot, row.start_pos);
  PromptLogprobs logprobs{.slot = row.slot, .start_pos = row.start_pos};
  for (int32_t i = 0; i < row.num_tokens; ++i) {
    int32_t token = tokens[i];
    if (token == kSampledToken) {
      Require(row.kind == RowKind::kDecode && slot.last_sample >= 0, "no sampled token known");
      token = slot.last_sample;
    }
    Require(token >= 0, "token {}", token);
    hash = ExtendHash(hash, token, row.kind);
    const int32_t position = row.start_pos + i;
    Write(group, row.slot, position, {position, token, row.kind, hash});
    const int32_t next = i + 1 < row.num_tokens ? tokens[i + 1] : row.next_token;
    if (row.prompt_logprobs && next >= 0) logprobs.logprobs.push_back(ToyLogprob(hash, next));
  }
  slot.next_position = end;
  if (row.prompt_logprobs) result->prompt_logprobs.push_back(std::move(logprobs));
  if (!row.sample) return;
  slot.last_sample = ToyNextToken(hash, slot.sampling);
  slot.sampled_last_step = true;
  SampleResult sample{.slot = row.slot, .token = slot.last_sample};
  sample.logprob = ToyLogprob(hash, sample.token);
  sample.non_finite = non_finite && non_finite(slot.sampling, end);
  result->samples.push_back(std::move(sample));
}

}  // namespace hadal::testing
