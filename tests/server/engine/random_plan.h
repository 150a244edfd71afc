#pragma once

#include <cstdint>
#include <random>

#include "common/step_plan.h"

namespace hadal::testing {

// Plans and results whose every field takes random values that the wire form allows.
class RandomPlans {
 public:
  explicit RandomPlans(uint64_t seed) : random_(seed) {}

  StepPlan Plan(uint64_t epoch, uint64_t step) {
    StepPlan plan{.epoch = epoch, .step = step, .groups = {}};
    plan.groups.resize(Below(4));
    for (GroupPlan& group : plan.groups) {
      group.leaves = Numbers(0, 1000);
      for (size_t i = Below(4); i > 0; --i) group.enters.push_back({Below(999), Sampling()});
      for (size_t i = Below(4); i > 0; --i) {
        group.block_tables.push_back({Below(999), Below(5000), Numbers(0, 100'000)});
      }
      for (size_t i = Below(9); i > 0; --i) AddRow(&group);
    }
    return plan;
  }

  StepResult Result(uint64_t epoch, uint64_t step) {
    StepResult result{.epoch = epoch, .step = step, .groups = {}, .step_us = Below(1 << 30)};
    result.groups.resize(Below(4));
    for (GroupResult& group : result.groups) {
      for (size_t i = Below(9); i > 0; --i) {
        SampleResult& sample = group.samples.emplace_back();
        sample = {Below(999), Below(200'000), Real(), {}, Below(2) == 0};
        for (size_t k = Below(6); k > 0; --k) sample.top.push_back({Below(200'000), Real()});
      }
      for (size_t i = Below(3); i > 0; --i) {
        PromptLogprobs& row = group.prompt_logprobs.emplace_back();
        row = {Below(999), Below(100'000), {}};
        for (size_t k = Below(300); k > 0; --k) row.logprobs.push_back(Real());
      }
    }
    return result;
  }

  int32_t Below(int32_t limit) {
    return std::uniform_int_distribution<int32_t>(0, limit - 1)(random_);
  }

 private:
  float Real() { return std::uniform_real_distribution<float>(-40, 40)(random_); }

  std::vector<int32_t> Numbers(int32_t lowest, int32_t limit) {
    std::vector<int32_t> numbers(Below(12));
    for (int32_t& number : numbers) number = lowest + Below(limit - lowest);
    return numbers;
  }

  SamplingParams Sampling() {
    return {.temperature = Real(),
            .top_p = Real(),
            .top_k = Below(1000),
            .min_p = Real(),
            .seed = random_(),
            .logprobs = Below(22) - 1};
  }

  void AddRow(GroupPlan* group) {
    PlanRow row{.slot = Below(999),
                .start_pos = Below(100'000),
                .num_tokens = 1 + Below(70),
                .kind = Below(2) == 0 ? RowKind::kPrefill : RowKind::kDecode,
                .sample = Below(2) == 0,
                .prompt_logprobs = Below(2) == 0,
                .next_token = Below(1000) - 1};
    for (int32_t i = 0; i < row.num_tokens; ++i) {
      group->tokens.push_back(row.kind == RowKind::kDecode && Below(3) == 0 ? kSampledToken
                                                                            : Below(200'000));
    }
    group->rows.push_back(row);
  }

  std::mt19937_64 random_;
};

}  // namespace hadal::testing
