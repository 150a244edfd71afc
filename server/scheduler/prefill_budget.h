#pragma once

#include <cstdint>

namespace hadal {

// What prompt tokens add to a step that has running streams: a fixed time for having any (they wake
// experts, and such a step is not replayed on a GPU) and a time for each. Fitted to the latest steps.
class PromptCost {
 public:
  void Add(double tokens, double us);
  bool known() const { return weight_ > 0; }
  // All of the latest steps had about as many tokens, so that the two cannot be told apart.
  bool uniform() const;
  // `token_us` is at most `most_token_us`.
  void Fit(double most_token_us, double* fixed_us, double* token_us) const;

 private:
  // Sums over the steps, older ones with less weight: of 1, tokens, us and their products.
  double weight_ = 0, tokens_ = 0, us_ = 0, tokens_tokens_ = 0, tokens_us_ = 0;
};

// How many tokens of prompt a plan may carry in each D group beside running streams, so that a long
// prompt slows them by a bounded factor instead of halting them.
//
// A step with prompt tokens may take kMaxSlowdown times as long as one without. Where their fixed
// time leaves too little of that, small chunks would only pay it more often: a chunk then may take
// as long as what is fixed, and steps without prompt tokens are put between so that the mean stays.
// Time enters only through OnResult.
class PrefillBudget {
 public:
  static constexpr int32_t kMinChunk = 8;           // a smaller one wastes the matmul kernels
  static constexpr double kMaxSlowdown = 3;         // of a step with prompt tokens, or of the mean
  static constexpr int32_t kMixedStepsInARow = 16;  // then one without, to measure against

  explicit PrefillBudget(int32_t step_tokens) : step_tokens_(step_tokens) {}

  // What the next plan may carry per D group; 0: nothing this time.
  int32_t NextChunk(bool decoding) const;
  // A plan was sent; `prompt_tokens`: the most in any D group.
  void OnPlanned(bool decoding, int32_t prompt_tokens);
  // Its result arrived. Results arrive in the order of the plans.
  void OnResult(bool decoding, int32_t prompt_tokens, int64_t step_us);

 private:
  double WantedTokens() const;

  int32_t step_tokens_;
  bool have_decode_ = false;
  bool have_alone_ = false;
  double decode_us_ = 0;  // of a step without prompt tokens
  double alone_us_ = 0;   // per prompt token of a step without streams
  PromptCost cost_;
  int32_t last_chunk_ = 0;     // of the last step with both
  int32_t largest_chunk_ = 0;  // of late
  int32_t mixed_in_a_row_ = 0;
  int32_t pauses_owed_ = 0;
};

}  // namespace hadal
