#include "worker/runtime/step_runner.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "proto/step_plan_codec.h"

namespace hadal {

StepRunner::StepRunner(Model* model, Backend* backend, CommGroup comm, const Layout& layout,
                       const GroupCapacity& capacity)
    : model_(model),
      backend_(backend),
      comm_(std::move(comm)),
      layout_(layout),
      vocab_limit_(static_cast<int32_t>(model->config().vocab_size)),
      slots_(capacity, vocab_limit_, model->config().max_seq_len),
      logits_(kLogitRows * model->config().vocab_size) {}

void StepRunner::Reset(int32_t vocab_limit) {
  vocab_limit_ = std::clamp(vocab_limit, 1, static_cast<int32_t>(model_->config().vocab_size));
  slots_.Clear();
}

StatusOr<StepResult> StepRunner::Run(const StepPlan& plan) {
  const auto start = std::chrono::steady_clock::now();
  if (static_cast<int>(plan.groups.size()) != layout_.data_parallel) {
    return InvalidArgument("plan has {} groups, the layout {}", plan.groups.size(),
                           layout_.data_parallel);
  }
  const GroupPlan& own = plan.groups[layout_.dp_rank()];
  HADAL_RETURN_IF_ERROR(slots_.Apply(own, &batch_));
  model_->Forward(batch_);
  StepResult result{.epoch = plan.epoch, .step = plan.step, .groups = {}};
  HADAL_RETURN_IF_ERROR(GatherGroups(SampleGroup(own, batch_), &result));
  result.step_us = std::chrono::duration_cast<std::chrono::microseconds>(
                       std::chrono::steady_clock::now() - start)
                       .count();
  return result;
}

// In the order in which SlotTable::Apply lists logit_tokens.
std::vector<StepRunner::LogitUse> StepRunner::ListLogitUses(const GroupPlan& plan) const {
  std::vector<LogitUse> uses;
  const int32_t* tokens = plan.tokens.data();
  int32_t list = 0;
  for (int32_t r = 0; r < static_cast<int32_t>(plan.rows.size()); ++r) {
    const PlanRow& row = plan.rows[r];
    if (row.prompt_logprobs) {
      for (int32_t i = 1; i < row.num_tokens; ++i) {
        uses.push_back({.row = r, .target = tokens[i], .list = list});
      }
      if (row.next_token >= 0) uses.push_back({.row = r, .target = row.next_token, .list = list});
      ++list;
    }
    if (row.sample) uses.push_back({.row = r, .position = row.start_pos + row.num_tokens});
    tokens += row.num_tokens;
  }
  return uses;
}

GroupResult StepRunner::SampleGroup(const GroupPlan& plan, const Batch& batch) {
  GroupResult result;
  // Every such row has its list, also when none of its tokens is followed by another.
  for (const PlanRow& row : plan.rows) {
    if (row.prompt_logprobs) result.prompt_logprobs.push_back({row.slot, row.start_pos, {}});
  }
  uses_ = ListLogitUses(plan);
  HADAL_CHECK(uses_.size() == batch.logit_tokens.size());
  const int total = static_cast<int>(uses_.size());
  for (int first = 0; first < total; first += kLogitRows) {
    const int count = std::min(kLogitRows, total - first);
    model_->Logits(first, count, logits_.data());
    if (layout_.tp_rank() == 0) ScoreLogits(plan, first, count, &result);
  }
  ShareSampledTokens(plan, &result);
  return result;
}

// Hands each run of rows with the same use to its op. REQUIRES: logits_ holds rows [first, +count).
void StepRunner::ScoreLogits(const GroupPlan& plan, int first, int count, GroupResult* result) {
  const int64_t vocab = model_->config().vocab_size;
  for (int begin = 0; begin < count;) {
    const bool draws = uses_[first + begin].target < 0;
    int end = begin;
    std::vector<int32_t> targets, positions;
    std::vector<SamplingParams> sampling;
    for (; end < count && (uses_[first + end].target < 0) == draws; ++end) {
      const LogitUse& use = uses_[first + end];
      targets.push_back(use.target);
      positions.push_back(use.position);
      sampling.push_back(slots_.sampling(plan.rows[use.row].slot));
    }
    const float* logits = logits_.data() + begin * vocab;
    const int rows = end - begin;
    if (draws) {
      const size_t at = result->samples.size();
      result->samples.resize(at + rows);
      backend_->Sample({.logits = logits, .rows = rows, .vocab = vocab, .vocab_limit = vocab_limit_,
                        .sampling = sampling.data(), .positions = positions.data(),
                        .results = &result->samples[at]});
      for (int i = 0; i < rows; ++i) {
        result->samples[at + i].slot = plan.rows[uses_[first + begin + i].row].slot;
      }
    } else {
      std::vector<float> logprobs(rows);
      backend_->TokenLogprobs({.logits = logits, .targets = targets.data(), .rows = rows,
                               .vocab = vocab, .vocab_limit = vocab, .out = logprobs.data()});
      for (int i = 0; i < rows; ++i) {
        result->prompt_logprobs[uses_[first + begin + i].list].logprobs.push_back(logprobs[i]);
      }
    }
    begin = end;
  }
}

// One rank draws and tells the others: hosts of different kinds could round differently.
void StepRunner::ShareSampledTokens(const GroupPlan& plan, GroupResult* result) {
  std::vector<int32_t> slots;
  for (const PlanRow& row : plan.rows) {
    if (row.sample) slots.push_back(row.slot);
  }
  if (slots.empty()) return;
  std::vector<int32_t> tokens(slots.size());
  for (size_t i = 0; i < result->samples.size(); ++i) tokens[i] = result->samples[i].token;
  comm_.tensor->Broadcast(tokens.data(), static_cast<int64_t>(tokens.size() * sizeof(int32_t)), 0);
  for (size_t i = 0; i < slots.size(); ++i) slots_.SetLastToken(slots[i], tokens[i]);
}

Status StepRunner::GatherGroups(GroupResult own, StepResult* result) {
  if (layout_.data_parallel == 1) {
    result->groups.push_back(std::move(own));
    return OkStatus();
  }
  const std::string bytes = layout_.tp_rank() == 0 ? EncodeGroupResult(own) : "";
  const auto own_size = static_cast<int64_t>(bytes.size());
  std::vector<int64_t> sizes(layout_.world());
  comm_.world->AllGather(&own_size, sizes.data(), sizeof(own_size));
  int64_t total = 0;
  for (int64_t size : sizes) total += size;
  std::vector<uint8_t> all(total);
  comm_.world->AllGatherV(bytes.data(), all.data(), sizes);
  if (layout_.rank != 0) return OkStatus();
  int64_t offset = 0;
  for (int d = 0; d < layout_.data_parallel; ++d) {
    const int64_t size = sizes[d * layout_.tensor_parallel];
    HADAL_ASSIGN_OR_RETURN(GroupResult group, DecodeGroupResult({all.data() + offset,
                                                                 static_cast<size_t>(size)}));
    result->groups.push_back(std::move(group));
    offset += size;
  }
  return OkStatus();
}

}  // namespace hadal
