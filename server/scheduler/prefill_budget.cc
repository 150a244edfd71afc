#include "server/scheduler/prefill_budget.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace hadal {
namespace {

constexpr double kNewWeight = 0.4;  // of a new measurement in a running mean
constexpr double kOldWeight = 0.9;  // of all earlier steps in a fit
constexpr int32_t kMaxPausesOwed = 16;

void Blend(double value, bool* have, double* mean) {
  *mean = *have ? *mean + kNewWeight * (value - *mean) : value;
  *have = true;
}

}  // namespace

void PromptCost::Add(double tokens, double us) {
  for (double* sum : {&weight_, &tokens_, &us_, &tokens_tokens_, &tokens_us_}) *sum *= kOldWeight;
  weight_ += 1;
  tokens_ += tokens;
  us_ += us;
  tokens_tokens_ += tokens * tokens;
  tokens_us_ += tokens * us;
}

bool PromptCost::uniform() const {
  constexpr double kLeastSpread = 0.01;  // variance over squared mean
  return weight_ * tokens_tokens_ - tokens_ * tokens_ <= kLeastSpread * tokens_ * tokens_;
}

void PromptCost::Fit(double most_token_us, double* fixed_us, double* token_us) const {
  *token_us = us_ / tokens_;  // as if nothing were fixed
  if (!uniform()) {
    const double slope = (weight_ * tokens_us_ - tokens_ * us_) /
                         (weight_ * tokens_tokens_ - tokens_ * tokens_);
    *token_us = std::clamp(slope, 0.0, *token_us);
  }
  *token_us = std::min(*token_us, most_token_us);
  *fixed_us = std::max(0.0, (us_ - *token_us * tokens_) / weight_);
}

double PrefillBudget::WantedTokens() const {
  if (!cost_.known()) return kMinChunk;
  double fixed_us, token_us;
  cost_.Fit(have_alone_ ? alone_us_ : std::numeric_limits<double>::infinity(), &fixed_us,
            &token_us);
  const double most_us = (kMaxSlowdown - 1) * decode_us_;
  const double spare_us = std::max(most_us - fixed_us, std::min(fixed_us, most_us));
  return token_us > 0 ? spare_us / token_us : step_tokens_;
}

int32_t PrefillBudget::NextChunk(bool decoding) const {
  if (!decoding) return step_tokens_;
  if (!have_decode_ || pauses_owed_ > 0 || mixed_in_a_row_ >= kMixedStepsInARow) return 0;
  double chunk = WantedTokens();
  // Growing by doubling: a step twice as long as those of late is the worst that a wrong guess costs.
  const int32_t ceiling = std::min(step_tokens_, std::max(kMinChunk, 2 * largest_chunk_));
  // Another size now and then, so that what is fixed can be told from what is not.
  if (chunk < ceiling && cost_.uniform() && last_chunk_ > 0) {
    chunk = last_chunk_ >= 2 * kMinChunk ? std::min(chunk, 0.5 * last_chunk_) : 2.0 * last_chunk_;
  }
  if (chunk >= ceiling) return ceiling;
  const auto whole = static_cast<int32_t>(chunk) / kMinChunk * kMinChunk;
  return std::min(std::max(whole, kMinChunk), step_tokens_);
}

void PrefillBudget::OnPlanned(bool decoding, int32_t prompt_tokens) {
  if (!decoding) return;
  if (prompt_tokens > 0) {
    ++mixed_in_a_row_;
    return;
  }
  mixed_in_a_row_ = 0;
  pauses_owed_ = std::max(0, pauses_owed_ - 1);
}

void PrefillBudget::OnResult(bool decoding, int32_t prompt_tokens, int64_t step_us) {
  const double us = static_cast<double>(std::max<int64_t>(0, step_us));
  if (!decoding) {
    // Short chunks say more about the step than about the token.
    if (prompt_tokens >= kMinChunk) Blend(us / prompt_tokens, &have_alone_, &alone_us_);
    return;
  }
  if (prompt_tokens == 0) {
    Blend(us, &have_decode_, &decode_us_);
    return;
  }
  last_chunk_ = prompt_tokens;
  largest_chunk_ = std::max(prompt_tokens, largest_chunk_ / 8 * 7);
  cost_.Add(prompt_tokens, std::max(0.0, us - decode_us_));
  if (us > kMaxSlowdown * decode_us_ && decode_us_ > 0) {
    const double above_us = us - kMaxSlowdown * decode_us_;
    const double pauses = std::ceil(above_us / ((kMaxSlowdown - 1) * decode_us_));
    pauses_owed_ += static_cast<int32_t>(std::min<double>(pauses, kMaxPausesOwed));
    pauses_owed_ = std::min(pauses_owed_, kMaxPausesOwed);
  }
}

}  // namespace hadal
