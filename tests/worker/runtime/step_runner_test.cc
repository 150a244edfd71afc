// Plans through real models on threads: what is sampled and scored against the logits of the same
// tokens run by the model alone.

#include "worker/runtime/step_runner.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <tuple>

#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"
#include "tests/support/tiny_checkpoint.h"
#include "tests/worker/runtime/runner_group.h"

namespace hadal::testing {
namespace {

constexpr int kBlocks = 12;
constexpr int kMaxStepTokens = 200;

// A tiny F32 model on the ranks of one layout, and their runners.
struct Fixture {
  explicit Fixture(int tensor_parallel = 1, int data_parallel = 1, bool fixed_exchange = false) {
    WriteTinyCheckpoint(dir.path(), TinyConfig(DType::kF32), seed);
    models = std::make_unique<ModelGroup>(
        dir.path(), ModelGroupOptions{.tensor_parallel = tensor_parallel,
                                      .data_parallel = data_parallel,
                                      .max_step_tokens = kMaxStepTokens,
                                      .kv_blocks = kBlocks,
                                      .replays = fixed_exchange,
                                      .fixed_exchange = fixed_exchange});
    runners = std::make_unique<RunnerGroup>(
        models.get(), GroupCapacity{.tensor_parallel = tensor_parallel,
                                    .data_parallel = data_parallel,
                                    .kv_blocks = kBlocks,
                                    .max_slots = 3,
                                    .max_step_tokens = kMaxStepTokens});
  }

  std::vector<int32_t> RandomTokens(int count) {
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random() % models->config().vocab_size);
    return tokens;
  }

  // Logits behind every token of `tokens`, the first `prompt` of them prefilled, by the model alone.
  std::vector<std::vector<float>> Logits(const std::vector<int32_t>& tokens, int prompt) {
    std::vector<StepSpec> steps;
    const auto add = [&](const RowSpec& row) {
      steps.emplace_back(models->options().data_parallel);
      steps.back()[0] = {row};
    };
    add({.start = 0, .count = prompt});
    for (int i = prompt; i < static_cast<int>(tokens.size()); ++i) {
      add({.start = i, .count = 1, .kind = RowKind::kDecode});
    }
    return models->Run({tokens}, steps, random())[0];
  }

  uint64_t seed = RandomSeed();
  std::mt19937_64 random{seed};
  TempDir dir;
  std::unique_ptr<ModelGroup> models;
  std::unique_ptr<RunnerGroup> runners;
};

// Slot `slot` is entered and computes its whole prompt; its blocks start at `first_block`.
GroupPlan PromptPlan(int32_t slot, int32_t first_block, const std::vector<int32_t>& prompt,
                     const SamplingParams& sampling) {
  GroupPlan plan;
  plan.enters.push_back({slot, sampling});
  plan.block_tables.push_back({slot, 0, {first_block, first_block + 1, first_block + 2}});
  plan.rows.push_back({.slot = slot, .num_tokens = static_cast<int32_t>(prompt.size()), .sample = true});
  plan.tokens = prompt;
  return plan;
}

GroupPlan DecodePlan(int32_t slot, int32_t position) {
  GroupPlan plan;
  plan.rows.push_back(
      {.slot = slot, .start_pos = position, .num_tokens = 1, .kind = RowKind::kDecode, .sample = true});
  plan.tokens = {kSampledToken};
  return plan;
}

// The plan of one D group; the others have nothing to do.
StepPlan Alone(const GroupPlan& plan, const Fixture& fixture, int group = 0) {
  StepPlan step{.epoch = 1, .step = 1, .groups = {}};
  step.groups.resize(fixture.models->options().data_parallel);
  step.groups[group] = plan;
  return step;
}

TEST_CASE("greedy tokens and their log-probabilities are those of the model's logits") {
  for (const auto& [t, d, fixed] : {std::tuple(1, 1, false), {2, 1, false}, {1, 2, false},
                                    {2, 2, false}, {1, 2, true}, {2, 2, true}}) {
    CAPTURE(t, d, fixed);
    Fixture fixture(t, d, fixed);
    const int group = d - 1;  // the last one
    std::vector<int32_t> tokens = fixture.RandomTokens(70);
    const int prompt = static_cast<int>(tokens.size());
    std::vector<SampleResult> samples;
    GroupPlan plan = PromptPlan(2, 5, tokens, {.logprobs = 4});
    for (int i = 0; i < 8; ++i) {
      const StatusOr<StepResult> result = fixture.runners->Run(Alone(plan, fixture, group));
      REQUIRE(result.ok());
      REQUIRE(result->groups.size() == static_cast<size_t>(d));
      REQUIRE(result->groups[group].samples.size() == 1);
      samples.push_back(result->groups[group].samples[0]);
      tokens.push_back(samples.back().token);
      plan = DecodePlan(2, static_cast<int32_t>(tokens.size()) - 1);
    }
    const auto logits = fixture.Logits(tokens, prompt);
    for (size_t i = 0; i < samples.size(); ++i) {
      const std::vector<float>& expected = logits[prompt - 1 + i];
      CHECK(samples[i].slot == 2);
      CHECK_FALSE(samples[i].non_finite);
      CHECK(samples[i].token == ArgMax(expected));
      CHECK(samples[i].logprob == Approx(LogProb(expected, samples[i].token)).margin(1e-4));
      REQUIRE(samples[i].top.size() == 4);
      for (const TokenLogprob& top : samples[i].top) {
        CHECK(top.logprob == Approx(LogProb(expected, top.token)).margin(1e-4));
      }
    }
  }
}

TEST_CASE("no more tokens are listed than may be drawn") {
  for (const int tensor_parallel : {1, 2}) {
    Fixture fixture(tensor_parallel);
    const std::vector<int32_t> tokens = fixture.RandomTokens(9);
    for (const int32_t limit : {1, 7, 19, 21}) {
      CAPTURE(tensor_parallel, limit);
      fixture.runners->Reset(limit);
      const auto result = fixture.runners->Run(
          Alone(PromptPlan(2, 5, tokens, {.logprobs = kMaxTopLogprobs}), fixture));
      REQUIRE(result.ok());
      const std::vector<TokenLogprob>& top = result->groups[0].samples[0].top;
      CHECK(static_cast<int>(top.size()) == std::min(limit, kMaxTopLogprobs));
      std::set<int32_t> listed;
      for (const TokenLogprob& each : top) {
        CHECK(each.token >= 0);
        CHECK(each.token < limit);
        listed.insert(each.token);
      }
      CHECK(listed.size() == top.size());
    }
  }
}

TEST_CASE("log-probabilities of a prompt in chunks, more than one piece of logits") {
  Fixture fixture(2, 1);
  const std::vector<int32_t> prompt = fixture.RandomTokens(3 * StepRunner::LogitRows(*fixture.models->backend(0), 3) + 5);
  const auto logits = fixture.Logits(prompt, static_cast<int>(prompt.size()));
  const auto size = static_cast<int32_t>(prompt.size());
  std::vector<float> got;
  // Chunks of one token, of many, and of one again, the last with nothing behind it.
  const std::vector<int32_t> ends = {1, size - 1, size};
  int32_t start = 0;
  for (const int32_t end : ends) {
    GroupPlan plan;
    if (start == 0) plan = PromptPlan(0, 3, prompt, {});
    plan.rows = {{.slot = 0,
                  .start_pos = start,
                  .num_tokens = end - start,
                  .sample = end == size,
                  .prompt_logprobs = true,
                  .next_token = end == size ? -1 : prompt[end]}};
    plan.tokens.assign(prompt.begin() + start, prompt.begin() + end);
    const StatusOr<StepResult> result = fixture.runners->Run(Alone(plan, fixture));
    REQUIRE(result.ok());
    const GroupResult& group = result->groups[0];
    REQUIRE(group.prompt_logprobs.size() == 1);
    CHECK(group.prompt_logprobs[0].start_pos == start);
    CHECK(group.samples.size() == (end == size ? 1 : 0));
    const auto& list = group.prompt_logprobs[0].logprobs;
    got.insert(got.end(), list.begin(), list.end());
    start = end;
  }
  REQUIRE(got.size() == prompt.size() - 1);
  for (size_t i = 0; i < got.size(); ++i) {
    CHECK(got[i] == Approx(LogProb(logits[i], prompt[i + 1])).margin(1e-4));
  }
}

TEST_CASE("rows that score and rows that sample share a step") {
  Fixture fixture;
  const std::vector<int32_t> first = fixture.RandomTokens(40), second = fixture.RandomTokens(37);
  GroupPlan plan = PromptPlan(0, 0, first, {});
  plan.rows[0].prompt_logprobs = true;
  const GroupPlan other = PromptPlan(1, 6, second, {.temperature = 1, .seed = 9, .logprobs = 0});
  plan.enters.push_back(other.enters[0]);
  plan.block_tables.push_back(other.block_tables[0]);
  plan.rows.push_back(other.rows[0]);
  plan.tokens.insert(plan.tokens.end(), second.begin(), second.end());
  const StatusOr<StepResult> together = fixture.runners->Run(Alone(plan, fixture));
  REQUIRE(together.ok());
  const GroupResult& result = together->groups[0];
  REQUIRE(result.samples.size() == 2);
  REQUIRE(result.prompt_logprobs.size() == 1);
  CHECK(result.prompt_logprobs[0].logprobs.size() == first.size() - 1);

  // The second alone draws the same token, bit for bit the same log-probability.
  fixture.runners->Reset(static_cast<int32_t>(fixture.models->config().vocab_size));
  const StatusOr<StepResult> alone = fixture.runners->Run(Alone(other, fixture));
  REQUIRE(alone.ok());
  CHECK(alone->groups[0].samples[0] == result.samples[1]);
  const double expected = LogProb(fixture.Logits(second, 37)[36], result.samples[1].token);
  CHECK(result.samples[1].logprob == Approx(expected).margin(1e-4));
}

TEST_CASE("logits that are not finite are reported for their row alone") {
  Fixture fixture(2, 1);
  std::vector<int32_t> good = fixture.RandomTokens(20), bad = fixture.RandomTokens(20);
  std::replace(good.begin(), good.end(), 7, 8);
  bad.back() = 7;
  fixture.runners->Poison(7);
  GroupPlan plan = PromptPlan(0, 0, bad, {});
  const GroupPlan other = PromptPlan(1, 6, good, {});
  plan.enters.push_back(other.enters[0]);
  plan.block_tables.push_back(other.block_tables[0]);
  plan.rows.push_back(other.rows[0]);
  plan.tokens.insert(plan.tokens.end(), good.begin(), good.end());
  const StatusOr<StepResult> result = fixture.runners->Run(Alone(plan, fixture));
  REQUIRE(result.ok());
  REQUIRE(result->groups[0].samples.size() == 2);
  CHECK(result->groups[0].samples[0].non_finite);
  CHECK_FALSE(result->groups[0].samples[1].non_finite);
  CHECK(result->groups[0].samples[1].token == ArgMax(fixture.Logits(good, 20)[19]));
}

TEST_CASE("ids without a token are never drawn") {
  Fixture fixture;
  const std::vector<int32_t> prompt = fixture.RandomTokens(30);
  const auto logits = fixture.Logits(prompt, 30)[29];
  for (const int32_t limit : {1, 5, 100}) {
    fixture.runners->Reset(limit);
    const auto result = fixture.runners->Run(Alone(PromptPlan(0, 0, prompt, {}), fixture));
    REQUIRE(result.ok());
    CHECK(result->groups[0].samples[0].token ==
          std::max_element(logits.begin(), logits.begin() + limit) - logits.begin());
  }
}

TEST_CASE("every rank refuses a plan that is not possible") {
  Fixture fixture(2, 1);
  StepPlan plan = Alone(DecodePlan(1, 3), fixture);  // nobody is in slot 1
  CHECK(fixture.runners->Run(plan).status().code() == StatusCode::kInvalidArgument);
  plan.groups.resize(2);
  CHECK(fixture.runners->Run(plan).status().code() == StatusCode::kInvalidArgument);

  Fixture groups(1, 2, /*fixed_exchange=*/true);
  plan.groups[1].tokens.resize(kMaxStepTokens + 1);  // too many for the other rank's group
  plan.groups[0] = PromptPlan(0, 0, groups.RandomTokens(5), {});
  CHECK(groups.runners->Run(plan).status().code() == StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace hadal::testing
