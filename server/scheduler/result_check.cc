#include "server/scheduler/result_check.h"

#include <algorithm>

namespace hadal {
namespace {

// The log-probabilities that a row brings: of every next token that is part of the prompt.
size_t NumPromptLogprobs(const PlanRow& row) {
  return static_cast<size_t>(row.next_token < 0 ? row.num_tokens - 1 : row.num_tokens);
}

// An id that has no token would end the decoder, and the next workers that are fed with it.
Status CheckIds(size_t group, const SampleResult& sample, int32_t vocab_limit) {
  if (sample.non_finite) return OkStatus();  // meaningless, and never read
  if (sample.token < 0 || sample.token >= vocab_limit) {
    return Internal("group {}: slot {} sampled token {}, ids end at {}", group, sample.slot,
                    sample.token, vocab_limit);
  }
  for (const TokenLogprob& entry : sample.top) {
    if (entry.token >= 0 && entry.token < vocab_limit) continue;
    return Internal("group {}: slot {} has token {} among the most likely, ids end at {}", group,
                    sample.slot, entry.token, vocab_limit);
  }
  return OkStatus();
}

Status CheckSamples(size_t group, const std::vector<PlanRow>& rows,
                    const std::vector<SampleResult>& samples, int32_t vocab_limit) {
  size_t next = 0;
  for (const PlanRow& row : rows) {
    if (!row.sample) continue;
    if (next == samples.size()) {
      return Internal("group {}: {} samples, more rows sample", group, samples.size());
    }
    const SampleResult& sample = samples[next++];
    if (sample.slot != row.slot) {
      return Internal("group {}: sample {} is of slot {}, expected slot {}", group, next - 1,
                      sample.slot, row.slot);
    }
    HADAL_RETURN_IF_ERROR(CheckIds(group, sample, vocab_limit));
  }
  if (next != samples.size()) {
    return Internal("group {}: {} samples, only {} rows sample", group, samples.size(), next);
  }
  return OkStatus();
}

Status CheckPromptLogprobs(size_t group, const std::vector<PlanRow>& rows,
                           const std::vector<PromptLogprobs>& found) {
  size_t expected = 0;
  for (const PlanRow& row : rows) {
    if (!row.prompt_logprobs) continue;
    ++expected;
    const auto it = std::ranges::find(found, row.slot, &PromptLogprobs::slot);
    if (it == found.end())
      return Internal("group {}: no prompt_logprobs of slot {}", group, row.slot);
    if (it->start_pos != row.start_pos || it->logprobs.size() != NumPromptLogprobs(row)) {
      return Internal("group {}: slot {} has {} prompt_logprobs from {}, expected {} from {}",
                      group, row.slot, it->logprobs.size(), it->start_pos, NumPromptLogprobs(row),
                      row.start_pos);
    }
  }
  if (expected != found.size()) {
    return Internal("group {}: {} rows with prompt_logprobs, expected {}", group, found.size(),
                    expected);
  }
  return OkStatus();
}

}  // namespace

Status CheckResult(const PlanInFlight& plan, const StepResult& result, int32_t vocab_limit) {
  if (result.epoch != plan.epoch || result.step != plan.step) {
    return Internal("the worker group answered step {} of epoch {}, expected step {} of epoch {}",
                    result.step, result.epoch, plan.step, plan.epoch);
  }
  if (result.groups.size() != plan.groups.size()) {
    return Internal("step {}: the worker group answered for {} data-parallel groups, expected {}",
                    plan.step, result.groups.size(), plan.groups.size());
  }
  for (size_t g = 0; g < plan.groups.size(); ++g) {
    const std::vector<PlanRow>& rows = plan.groups[g].rows;
    HADAL_RETURN_IF_ERROR(CheckSamples(g, rows, result.groups[g].samples, vocab_limit));
    HADAL_RETURN_IF_ERROR(CheckPromptLogprobs(g, rows, result.groups[g].prompt_logprobs));
  }
  return OkStatus();
}

}  // namespace hadal
