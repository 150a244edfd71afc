#include "server/scheduler/scheduler.h"

#include "tests/server/scheduler/scheduler_harness.h"
#include "tests/support/catch.h"

namespace hadal {

using testing::Capacity;
using testing::Harness;
using testing::Rows;
using testing::Tokens;

TEST_CASE("plans are made one ahead of the results") {
  Harness h(Capacity(4));
  const Request request = h.Add(1, Tokens(5, 10), 3);

  const StepPlan first = h.Plan();
  REQUIRE(Rows(first).size() == 1);
  CHECK(Rows(first)[0] == PlanRow{.slot = 0, .num_tokens = 10, .sample = true});
  CHECK(first.groups[0].tokens == request.prompt);
  CHECK(first.groups[0].enters == std::vector<SlotEnter>{{0, request.sampling}});

  const StepPlan second = h.Plan();
  REQUIRE(Rows(second).size() == 1);
  CHECK(Rows(second)[0].start_pos == 10);
  CHECK(Rows(second)[0].kind == RowKind::kDecode);
  CHECK(second.groups[0].tokens == std::vector<int32_t>{kSampledToken});

  CHECK(h.Plan().groups.empty());  // two are in flight
  h.Answer();
  const StepPlan third = h.Plan();
  CHECK(Rows(third).at(0).start_pos == 11);
  h.Answer();
  CHECK(h.Plan().groups.empty());  // the third token is on its way, a fourth is not allowed
  h.Answer();
  CHECK(h.finished.at(1).reason == FinishReason::kLength);
  CHECK(h.tokens[1] == testing::ToyGenerate(request.prompt, request.sampling, 3));
  CHECK(h.scheduler.available_blocks() == 4);
}

TEST_CASE("a stop token ends the request; the row computed in vain is never shown") {
  Harness h(Capacity(4, 1));
  Request request{.id = 1, .prompt = Tokens(0, 9), .max_tokens = 50};
  const auto generated = testing::ToyGenerate(request.prompt, request.sampling, 50);
  request.stop_token_ids = {generated[2]};
  h.scheduler.Add(request);
  const Request next = h.Add(2, Tokens(3, 4), 2);
  const auto stop = std::ranges::find(generated, generated[2]) - generated.begin();
  for (std::ptrdiff_t i = 0; i <= stop; ++i) {
    while (!h.Plan().groups.empty()) {
    }
    h.Answer();
  }
  CHECK(h.finished.at(1).reason == FinishReason::kStop);
  CHECK(h.finished.at(1).stop_token_id == generated[2]);
  CHECK(h.tokens[1] == std::vector<int32_t>(generated.begin(), generated.begin() + stop));

  // One row of it is in flight still; its slot goes to the next request, leave before enter.
  const StepPlan plan = h.Plan();
  CHECK(plan.groups[0].leaves == std::vector<int32_t>{0});
  CHECK(plan.groups[0].enters.at(0).slot == 0);
  h.RunDry();
  CHECK(h.tokens[2] == testing::ToyGenerate(next.prompt, next.sampling, 2));
  CHECK(h.tokens[1].size() == static_cast<size_t>(stop));
}

TEST_CASE("a long prompt is computed in chunks of the budget") {
  Harness h(Capacity(4), 32);
  h.Add(1, Tokens(0, 100), 1);
  std::vector<std::pair<int32_t, int32_t>> chunks;
  for (int i = 0; i < 4; ++i) {
    const StepPlan plan = h.Plan();
    chunks.emplace_back(Rows(plan).at(0).start_pos, Rows(plan)[0].num_tokens);
    CHECK(Rows(plan)[0].sample == (i == 3));
    if (h.in_flight.size() == 2) h.Answer();
  }
  CHECK(chunks == std::vector<std::pair<int32_t, int32_t>>{{0, 32}, {32, 32}, {64, 32}, {96, 4}});
}

TEST_CASE("running streams come first and get a token in every step") {
  Harness h(Capacity(40), 6);
  // The executor refuses a plan in which a stream that could go on stands still.
  h.executor->exhausted = [](const SamplingParams& sampling, int32_t position) {
    return position >= (sampling.seed == 6 ? 200 + 5 - 1 : 3 + 60 - 1);
  };
  for (uint64_t id = 1; id <= 5; ++id) h.Add(id, Tokens(static_cast<int32_t>(id), 3), 60);
  h.Add(6, Tokens(0, 200), 5);
  int steps_with_all = 0;
  for (int i = 0; i < 300 && !h.finished.contains(6); ++i) {
    const StepPlan plan = h.Plan();
    if (!plan.groups.empty()) steps_with_all += Rows(plan).size() == 6;
    if (h.in_flight.size() == 2 || plan.groups.empty()) h.Answer();
  }
  CHECK(h.finished.contains(6));
  CHECK(steps_with_all > 20);  // the prompt was not starved either
}

TEST_CASE("a long prompt slows a running stream by at most about three") {
  constexpr int64_t kDecodeUs = 10'000;
  constexpr int64_t kTokenUs = 400;
  Harness h(Capacity(200), 512);
  h.Add(1, Tokens(0, 20), 4000);
  const auto prompt_tokens = [](const StepPlan& plan) {
    int32_t count = 0;
    for (const PlanRow& row : plan.groups.at(0).rows) {
      count += row.kind == RowKind::kPrefill ? row.num_tokens : 0;
    }
    return count;
  };
  std::deque<int64_t> step_us;
  int64_t worst = 0;
  for (int i = 0; i < 600; ++i) {
    if (i == 50) h.Add(2, Tokens(0, 4096), 1);
    const StepPlan plan = h.Plan();
    step_us.push_back(kDecodeUs + kTokenUs * prompt_tokens(plan));
    if (i > 0) worst = std::max(worst, step_us.back());
    if (h.in_flight.size() == 2) {
      h.Answer(step_us.front());
      step_us.pop_front();
    }
  }
  CHECK(h.finished.contains(2));
  CHECK(worst <= 3 * kDecodeUs);
}

TEST_CASE("a prompt is served from the cache once it has proved finite") {
  Harness h(Capacity(12), 200);
  const auto prompt = Tokens(0, 150);
  h.Add(1, prompt, 1);
  h.Plan();
  h.Answer();
  Request again = h.Add(2, prompt, 1);
  const StepPlan plan = h.Plan();
  CHECK(Rows(plan).at(0).start_pos == 128);
  h.Answer();
  CHECK(h.last[2].timing.cached_tokens == 128);
  CHECK(h.tokens[2] == testing::ToyGenerate(prompt, again.sampling, 1));

  // Its log-probabilities are in no cache.
  again = {.id = 3, .prompt = prompt, .max_tokens = 1, .prompt_logprobs = true};
  h.scheduler.Add(again);
  CHECK(Rows(h.Plan()).at(0).start_pos == 0);
  h.Answer();
  CHECK(h.last[3].prompt_logprobs == testing::ToyPromptLogprobs(prompt));
}

TEST_CASE("prompt_logprobs rows name the token that follows them") {
  Harness h(Capacity(4), 10);
  Request request{.id = 1, .prompt = Tokens(0, 21), .max_tokens = 1, .prompt_logprobs = true};
  h.scheduler.Add(request);
  const StepPlan first = h.Plan();
  CHECK(Rows(first).at(0).next_token == 10);
  const StepPlan second = h.Plan();
  CHECK(Rows(second).at(0).next_token == 20);
  h.Answer();
  const StepPlan third = h.Plan();
  CHECK(!Rows(third).at(0).prompt_logprobs);  // nothing of the prompt follows its last token
  h.Answer();
  h.Answer();
  CHECK(h.last[1].prompt_logprobs == testing::ToyPromptLogprobs(request.prompt));
}

TEST_CASE("data-parallel groups share the load and every plan names all of them") {
  Harness h(Capacity(8, 4, 3), 100);
  for (uint64_t id = 1; id <= 7; ++id) h.Add(id, Tokens(static_cast<int32_t>(id), 10), 4);
  const StepPlan plan = h.Plan();
  REQUIRE(plan.groups.size() == 3);
  CHECK(plan.groups[0].rows.size() == 3);
  CHECK(plan.groups[1].rows.size() == 2);
  CHECK(plan.groups[2].rows.size() == 2);
  h.RunDry();
  h.Add(8, Tokens(0, 5), 1);
  const StepPlan alone = h.Plan();
  REQUIRE(alone.groups.size() == 3);
  CHECK(alone.groups[1].rows.empty());
}

TEST_CASE("nobody overtakes a request that waits for blocks") {
  Harness h(Capacity(4), 300);
  h.Add(1, Tokens(0, 130), 5);   // 3 blocks
  h.Add(2, Tokens(50, 120), 5);  // 2 blocks: waits
  h.Add(3, Tokens(90, 3), 5);    // would fit
  const StepPlan plan = h.Plan();
  CHECK(Rows(plan).size() == 1);
  CHECK(h.scheduler.num_waiting() == 2);
  CHECK(h.scheduler.waiting_prompt_tokens() == 123);
  h.RunDry();
  CHECK(h.last[2].timing.scheduled_us <= h.last[3].timing.scheduled_us);
  CHECK(h.finished.size() == 3);
}

}  // namespace hadal
