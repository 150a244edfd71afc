#include "tests/worker/model/conformance_steps.h"

#include <algorithm>

namespace hadal::testing {
namespace {

int Length(const TokenLists& sequences, size_t s) { return static_cast<int>(sequences[s].size()); }

}  // namespace

StepScheme WholeScheme(const TokenLists& sequences, int groups, int max_tokens) {
  StepScheme scheme{"whole", {}};
  std::vector<size_t> step_of(groups, 0);
  std::vector<int> used(groups, 0);
  for (size_t s = 0; s < sequences.size(); ++s) {
    const size_t g = s % groups;
    const int count = Length(sequences, s);
    if (used[g] + count > max_tokens) {
      ++step_of[g];
      used[g] = 0;
    }
    used[g] += count;
    if (scheme.steps.size() <= step_of[g]) scheme.steps.resize(step_of[g] + 1, StepSpec(groups));
    scheme.steps[step_of[g]][g].push_back({static_cast<int>(s), 0, count});
  }
  return scheme;
}

StepScheme AloneScheme(const TokenLists& sequences, int groups) {
  StepScheme scheme{"alone", {}};
  for (size_t s = 0; s < sequences.size(); ++s) {
    StepSpec step(groups);
    step[s % groups].push_back({static_cast<int>(s), 0, Length(sequences, s)});
    scheme.steps.push_back(std::move(step));
  }
  return scheme;
}

StepScheme ChunkedScheme(const TokenLists& sequences, int groups, int max_tokens,
                         std::mt19937_64* random) {
  StepScheme scheme{"chunked", {}};
  std::vector<int> done(sequences.size(), 0);
  bool left = true;
  while (left) {
    left = false;
    StepSpec step(groups);
    std::vector<int> budget(groups, max_tokens);
    for (size_t s = 0; s < sequences.size(); ++s) {
      const size_t g = s % groups;
      const int longest = std::min(Length(sequences, s) - done[s], budget[g]);
      if (longest == 0) continue;
      const int count = std::uniform_int_distribution(1, longest)(*random);
      step[g].push_back({static_cast<int>(s), done[s], count});
      done[s] += count;
      budget[g] -= count;
      left = true;
    }
    if (left) scheme.steps.push_back(std::move(step));
  }
  return scheme;
}

StepScheme DecodeScheme(const TokenLists& sequences, const std::vector<int>& prompt_tokens,
                        int single, int groups) {
  StepScheme scheme{"decode", {}};
  StepSpec prompts(groups), rest(groups);
  std::vector<StepSpec> singles(single, StepSpec(groups));
  for (size_t s = 0; s < sequences.size(); ++s) {
    const size_t g = s % groups;
    const auto sequence = static_cast<int>(s);
    int pos = prompt_tokens[s];
    if (pos > 0) prompts[g].push_back({sequence, 0, pos});
    for (int i = 0; i < single && pos < Length(sequences, s); ++i, ++pos) {
      singles[i][g].push_back({sequence, pos, 1, RowKind::kDecode});
    }
    const int left = Length(sequences, s) - pos;
    if (left > 0) rest[g].push_back({sequence, pos, left, RowKind::kDecode});
  }
  scheme.steps.push_back(std::move(prompts));
  for (StepSpec& step : singles) scheme.steps.push_back(std::move(step));
  scheme.steps.push_back(std::move(rest));
  return scheme;
}

}  // namespace hadal::testing
