#include "server/scheduler/prefill_budget.h"

#include <algorithm>
#include <cmath>

namespace hadal {
namespace {

constexpr double kNewWeight = 0.4;  // of a new measurement in a running mean
constexpr int32_t kMaxPausesOwed = 16;

void Blend(double value, bool* have, double* mean) {
  *mean = *have ? *mean + kNewWeight * (value - *mean) : value;
  *have = true;
}

}  // namespace

int32_t PrefillBudget::NextChunk(bool decoding) const {
  if (!decoding) return step_tokens_;
  if (!have_decode_ || pauses_owed_ > 0 || mixed_in_a_row_ >= kMixedStepsInARow) return 0;
  double chunk = kMinChunk;
  if (have_token_) {
    chunk = token_us_ > 0 ? (kMaxSlowdown - 1) * decode_us_ / token_us_ : step_tokens_;
  }
  // Growing by doubling: a step twice as long as the last is the worst that a wrong guess costs.
  const int32_t ceiling = std::min(step_tokens_, std::max(kMinChunk, 2 * last_chunk_));
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
    if (prompt_tokens >= kMinChunk) Blend(us / prompt_tokens, &have_token_, &token_us_);
    return;
  }
  if (prompt_tokens == 0) {
    Blend(us, &have_decode_, &decode_us_);
    return;
  }
  last_chunk_ = prompt_tokens;
  Blend(std::max(0.0, us - decode_us_) / prompt_tokens, &have_token_, &token_us_);
  if (us > kMaxSlowdown * decode_us_ && decode_us_ > 0) {
    const double pauses = std::ceil(us / (kMaxSlowdown * decode_us_)) - 1;
    pauses_owed_ += static_cast<int32_t>(std::min<double>(pauses, kMaxPausesOwed));
    pauses_owed_ = std::min(pauses_owed_, kMaxPausesOwed);
  }
}

}  // namespace hadal
