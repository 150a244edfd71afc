#include "server/scheduler/result_check.h"

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

constexpr int32_t kVocabLimit = 6;

// Group 0: slot 3 decodes, slot 1 ends a prompt of 20 with prompt_logprobs, slot 2 is within one.
// Group 1 has nothing to do.
PlanInFlight Plan() {
  PlanInFlight plan{.epoch = 4, .step = 9, .groups = std::vector<PlanInFlight::Group>(2)};
  plan.groups[0].rows = {
      {.slot = 3, .start_pos = 7, .num_tokens = 1, .kind = RowKind::kDecode, .sample = true},
      {.slot = 1, .start_pos = 16, .num_tokens = 4, .sample = true, .prompt_logprobs = true},
      {.slot = 2, .start_pos = 0, .num_tokens = 5, .prompt_logprobs = true, .next_token = 8}};
  plan.groups[0].owners = {1, 2, 3};
  return plan;
}

StepResult Result() {
  StepResult result{.epoch = 4, .step = 9, .groups = std::vector<GroupResult>(2)};
  result.groups[0].samples = {{.slot = 3, .token = 5}, {.slot = 1, .token = 0}};
  result.groups[0].prompt_logprobs = {{.slot = 1, .start_pos = 16, .logprobs = {-1, -2, -3}},
                                      {.slot = 2, .logprobs = {-1, -2, -3, -4, -5}}};
  return result;
}

}  // namespace

TEST_CASE("the answer to the plan is accepted") {
  CHECK(CheckResult(Plan(), Result(), kVocabLimit).ok());
  StepResult result = Result();
  result.groups[0].samples[0].token = -7;
  result.groups[0].samples[0].top = {{1000, -1}};
  result.groups[0].samples[0].non_finite = true;
  result.groups[0].samples[1].top = {{5, -1}, {0, -2}};
  CHECK(CheckResult(Plan(), result, kVocabLimit).ok());
  std::swap(result.groups[0].prompt_logprobs[0], result.groups[0].prompt_logprobs[1]);
  CHECK(CheckResult(Plan(), result, kVocabLimit).ok());
}

TEST_CASE("every other answer is refused and named") {
  const std::vector<std::pair<std::string, std::function<void(StepResult*)>>> cases = {
      {"epoch 5", [](StepResult* r) { r->epoch = 5; }},
      {"step 10", [](StepResult* r) { r->step = 10; }},
      {"1 data-parallel", [](StepResult* r) { r->groups.pop_back(); }},
      {"3 data-parallel", [](StepResult* r) { r->groups.emplace_back(); }},
      {"1 samples", [](StepResult* r) { r->groups[0].samples.pop_back(); }},
      {"3 samples", [](StepResult* r) { r->groups[0].samples.emplace_back(); }},
      {"group 1: 1 samples", [](StepResult* r) { r->groups[1].samples.emplace_back(); }},
      {"slot 1, expected slot 3",
       [](StepResult* r) { std::swap(r->groups[0].samples[0], r->groups[0].samples[1]); }},
      {"token -1", [](StepResult* r) { r->groups[0].samples[1].token = -1; }},
      {"slot 3 sampled token 6, ids end at 6",
       [](StepResult* r) { r->groups[0].samples[0].token = kVocabLimit; }},
      {"slot 1 has token 6 among",
       [](StepResult* r) {
         r->groups[0].samples[1].top.assign(1, {kVocabLimit, -1});
       }},
      {"slot 1 has token -1 among",
       [](StepResult* r) {
         r->groups[0].samples[1].top.assign(2, {-1, -1});
       }},
      {"no prompt_logprobs of slot 1",
       [](StepResult* r) { r->groups[0].prompt_logprobs[0].slot = 2; }},
      {"no prompt_logprobs of slot 2",
       [](StepResult* r) { r->groups[0].prompt_logprobs.pop_back(); }},
      {"slot 2 has 4", [](StepResult* r) { r->groups[0].prompt_logprobs[1].logprobs.pop_back(); }},
      {"from 17", [](StepResult* r) { r->groups[0].prompt_logprobs[0].start_pos = 17; }},
      {"3 rows with", [](StepResult* r) { r->groups[0].prompt_logprobs.push_back({}); }},
  };
  for (const auto& [words, change] : cases) {
    INFO(words);
    StepResult result = Result();
    change(&result);
    const Status status = CheckResult(Plan(), result, kVocabLimit);
    CHECK(status.code() == StatusCode::kInternal);
    CHECK_THAT(status.message(), Catch::Matchers::Contains(words));
  }
}

TEST_CASE("random changes are refused or leave the answer as it is") {
  std::mt19937_64 random(testing::RandomSeed());
  for (int i = 0; i < 5000; ++i) {
    StepResult result = Result();
    for (GroupResult& group : result.groups) {
      if (random() % 3 == 0) group.samples.resize(random() % 4);
      if (random() % 3 == 0) group.prompt_logprobs.resize(random() % 4);
      for (SampleResult& sample : group.samples) {
        if (random() % 3 == 0) sample.slot = static_cast<int32_t>(random() % 5) - 1;
      }
      for (PromptLogprobs& row : group.prompt_logprobs) {
        if (random() % 3 == 0) row.logprobs.resize(random() % 7);
      }
    }
    StepResult expected = Result();
    bool same = true;
    for (size_t g = 0; g < 2; ++g) {
      const GroupResult& got = result.groups[g];
      const GroupResult& want = expected.groups[g];
      same &= got.samples.size() == want.samples.size() &&
              got.prompt_logprobs.size() == want.prompt_logprobs.size();
      if (!same) break;
      for (size_t s = 0; s < want.samples.size(); ++s) {
        same &= got.samples[s].slot == want.samples[s].slot;
      }
      for (size_t s = 0; s < want.prompt_logprobs.size(); ++s) {
        same &= got.prompt_logprobs[s].slot == want.prompt_logprobs[s].slot &&
                got.prompt_logprobs[s].start_pos == want.prompt_logprobs[s].start_pos &&
                got.prompt_logprobs[s].logprobs.size() == want.prompt_logprobs[s].logprobs.size();
      }
    }
    REQUIRE(CheckResult(Plan(), result, kVocabLimit).ok() == same);
  }
}

}  // namespace hadal
