// What a result changes: tokens are appended, stop conditions applied, news written.

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "server/scheduler/scheduler.h"

namespace hadal {

Status Scheduler::Apply(const StepResult& result, int64_t now_us) {
  if (in_flight_.empty()) {
    return Internal("the worker group answered step {} of epoch {}, but no plan is in flight",
                    result.step, result.epoch);
  }
  HADAL_RETURN_IF_ERROR(CheckResult(in_flight_.front(), result, vocab_limit_));
  const PlanInFlight plan = std::move(in_flight_.front());
  in_flight_.pop_front();
  prefill_budget_.OnResult(plan.decoding, plan.prompt_tokens, result.step_us);

  for (size_t g = 0; g < plan.groups.size(); ++g) {
    const PlanInFlight::Group& group = plan.groups[g];
    auto sample = result.groups[g].samples.begin();
    for (size_t i = 0; i < group.rows.size(); ++i) {
      const PlanRow& row = group.rows[i];
      Sequence* sequence = Find(group.owners[i]);  // null: finished while this was in flight
      if (sequence != nullptr) --sequence->rows_in_flight;
      if (sequence != nullptr && sequence->losses > 0 &&
          row.start_pos + row.num_tokens >= sequence->lost_at) {
        Acquit(sequence);
      }
      if (sequence != nullptr && row.prompt_logprobs) {
        const auto& found =
            *std::ranges::find(result.groups[g].prompt_logprobs, row.slot, &PromptLogprobs::slot);
        sequence->prompt_logprobs.insert(sequence->prompt_logprobs.end(), found.logprobs.begin(),
                                         found.logprobs.end());
      }
      if (!row.sample) continue;
      if (sequence != nullptr) ApplySample(sequence, *sample, now_us);
      ++sample;
    }
  }
  return OkStatus();
}

void Scheduler::ApplySample(Sequence* sequence, const SampleResult& sample, int64_t now_us) {
  --sequence->samples_in_flight;
  if (sample.non_finite) {
    // NaN spreads through attention: what was read from these blocks may be its source.
    if (sequence->running()) groups_[sequence->group].cache.Forget(sequence->blocks);
    Fail(sequence, Internal("the model's logits were not finite after {} generated tokens",
                            sequence->num_generated()));
    return;
  }
  Publish(sequence);
  if (sequence->timing.first_token_us == 0) sequence->timing.first_token_us = now_us;
  sequence->timing.last_token_us = now_us;

  RequestEvent event = EventOf(*sequence);
  if (sequence->needs_prompt_logprobs()) {
    HADAL_CHECK(sequence->prompt_logprobs.size() + 1 == sequence->request.prompt.size(),
                "{} prompt_logprobs of {} tokens", sequence->prompt_logprobs.size(),
                sequence->request.prompt.size());
    event.prompt_logprobs = std::move(sequence->prompt_logprobs);
    sequence->prompt_logprobs_delivered = true;
  }
  const std::vector<int32_t>& stops = sequence->request.stop_token_ids;
  if (std::ranges::find(stops, sample.token) != stops.end()) {
    event.finish = {.reason = FinishReason::kStop, .stop_token_id = sample.token};
  } else {
    sequence->generated.push_back(sample.token);
    event.tokens.push_back({sample.token, sample.logprob, sample.top});
    if (sequence->num_generated() == sequence->request.max_tokens) {
      event.finish = {.reason = FinishReason::kLength};
    }
  }
  if (event.finish) Erase(sequence);
  events_.push_back(std::move(event));
}

// Only once a finite token was drawn from them: that proves every prompt position finite, so a
// numerical fault of one request cannot reach others through the cache. It also means that every
// step which fills the blocks has run.
void Scheduler::Publish(Sequence* sequence) {
  if (sequence->published || !sequence->running()) return;
  groups_[sequence->group].cache.Publish(sequence->request.prompt, sequence->blocks);
  sequence->published = true;
}

RequestEvent Scheduler::EventOf(const Sequence& sequence) const {
  return {.id = sequence.request.id, .timing = sequence.timing};
}

}  // namespace hadal
