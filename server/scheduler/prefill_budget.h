#pragma once

#include <cstdint>

namespace hadal {

// How many tokens of prompt a plan may carry in each D group beside running streams, so that a long
// prompt slows them by a bounded factor instead of halting them.
//
// It compares steps with and without prompt tokens as the workers time them. The extra time per
// token is not constant (a few more tokens already wake most experts), so the chunk follows the
// measured ratio step by step, and where even the smallest chunk is too slow, steps without prompt
// tokens are put between. Time enters only through OnResult.
class PrefillBudget {
 public:
  static constexpr int32_t kMinChunk = 8;           // a smaller one wastes the matmul kernels
  static constexpr double kMaxSlowdown = 3;         // of a step with prompt tokens
  static constexpr int32_t kMixedStepsInARow = 16;  // then one without, to measure against

  explicit PrefillBudget(int32_t step_tokens) : step_tokens_(step_tokens) {}

  // What the next plan may carry per D group; 0: nothing this time.
  int32_t NextChunk(bool decoding) const;
  // A plan was sent; `prompt_tokens`: the most in any D group.
  void OnPlanned(bool decoding, int32_t prompt_tokens);
  // Its result arrived. Results arrive in the order of the plans.
  void OnResult(bool decoding, int32_t prompt_tokens, int64_t step_us);

 private:
  int32_t step_tokens_;
  bool have_decode_ = false;
  bool have_token_ = false;
  double decode_us_ = 0;    // of a step without prompt tokens
  double token_us_ = 0;     // extra time per prompt token
  int32_t last_chunk_ = 0;  // of the last step with both
  int32_t mixed_in_a_row_ = 0;
  int32_t pauses_owed_ = 0;
};

}  // namespace hadal
