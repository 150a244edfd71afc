#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "tests/worker/model/model_group.h"

namespace hadal::testing {

// Of every conformance case.
inline constexpr int kMaxStepTokens = 512;

// A way to run the same sequences: cut and batched differently, same results.
struct StepScheme {
  std::string name;
  std::vector<StepSpec> steps;
};

// Sequences whole, all in few steps.
StepScheme WholeScheme(const TokenLists& sequences, int groups, int max_tokens);
// One sequence a step, the other groups idle.
StepScheme AloneScheme(const TokenLists& sequences, int groups);
// Random chunks; those of several sequences share a step.
StepScheme ChunkedScheme(const TokenLists& sequences, int groups, int max_tokens,
                         std::mt19937_64* random);
// The tokens from prompt_tokens[s] on as decode rows, `single` of them one a step and the rest in one
// row, as after a preemption; the prompt as one prefill row. All sequences of a group in a batch.
StepScheme DecodeScheme(const TokenLists& sequences, const std::vector<int>& prompt_tokens,
                        int single, int groups);

}  // namespace hadal::testing
