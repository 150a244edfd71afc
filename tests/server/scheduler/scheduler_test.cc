#include "server/scheduler/scheduler.h"

#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "tests/server/scheduler/plan_executor.h"
#include "tests/support/catch.h"

namespace hadal {
namespace {

std::vector<int32_t> Tokens(int32_t first, int32_t count) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// A scheduler, workers that execute its plans when told to, and all news so far.
class Harness {
 public:
  explicit Harness(const GroupCapacity& capacity, int32_t budget = 64) : scheduler(budget) {
    Join(capacity);
  }

  void Join(const GroupCapacity& capacity) {
    executor = std::make_unique<testing::PlanExecutor>(capacity, ++epoch);
    in_flight.clear();
    scheduler.GroupJoined(epoch, capacity);
  }

  Request Add(uint64_t id, std::vector<int32_t> prompt, int32_t max_tokens) {
    Request request{.id = id, .prompt = std::move(prompt), .max_tokens = max_tokens};
    request.sampling.seed = id;
    scheduler.Add(request);
    return request;
  }

  // The next plan, empty when there is none.
  StepPlan Plan() {
    std::optional<StepPlan> plan = scheduler.Schedule(++now_us);
    if (!plan) return {};
    in_flight.push_back(executor->Execute(*plan));
    return *plan;
  }

  void Answer(int64_t step_us = 1000) {
    in_flight.front().step_us = step_us;
    const Status status = scheduler.Apply(in_flight.front(), ++now_us);
    REQUIRE(status.ok());
    in_flight.pop_front();
    for (RequestEvent& event : scheduler.TakeEvents()) {
      for (const GeneratedToken& token : event.tokens) tokens[event.id].push_back(token.token);
      if (event.finish) finished[event.id] = *event.finish;
      last[event.id] = std::move(event);
    }
  }

  void RunDry() {
    for (int i = 0; i < 10000; ++i) {
      while (!Plan().groups.empty()) {
      }
      if (in_flight.empty()) return;
      Answer();
    }
    FAIL("no end");
  }

  Scheduler scheduler;
  std::unique_ptr<testing::PlanExecutor> executor;
  std::deque<StepResult> in_flight;
  uint64_t epoch = 0;
  int64_t now_us = 0;
  std::map<uint64_t, std::vector<int32_t>> tokens;
  std::map<uint64_t, RequestEvent::Finish> finished;
  std::map<uint64_t, RequestEvent> last;
};

GroupCapacity Capacity(int32_t kv_blocks, int32_t max_slots = 8, int32_t data_parallel = 1) {
  return {.data_parallel = data_parallel,
          .kv_blocks = kv_blocks,
          .max_slots = max_slots,
          .max_step_tokens = 1000};
}

const std::vector<PlanRow>& Rows(const StepPlan& plan) { return plan.groups.at(0).rows; }

}  // namespace

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

TEST_CASE("a cancelled request frees its blocks at once and its slot with the next plan") {
  Harness h(Capacity(4), 200);
  h.Add(1, Tokens(0, 100), 28);
  h.Add(2, Tokens(7, 10), 5);
  h.Plan();
  CHECK(h.scheduler.available_blocks() == 1);
  h.scheduler.Cancel(1);
  h.scheduler.Cancel(1);
  h.scheduler.Cancel(99);
  CHECK(h.scheduler.available_blocks() == 3);
  h.Answer();
  const StepPlan plan = h.Plan();
  CHECK(plan.groups[0].leaves == std::vector<int32_t>{0});
  h.RunDry();
  CHECK(h.finished.contains(2));
  CHECK(!h.finished.contains(1));
}

TEST_CASE("the latest request gives way when blocks run out, and goes on later") {
  Harness h(Capacity(4), 48);
  const Request a = h.Add(1, Tokens(0, 60), 70);  // 3 blocks in the end
  const Request b = h.Add(2, Tokens(9, 50), 78);  // 2 blocks in the end
  h.RunDry();
  CHECK(h.executor->enters >= 3);
  CHECK(h.executor->recomputed_rows > 0);
  CHECK(h.tokens[1] == testing::ToyGenerate(a.prompt, a.sampling, 70));
  CHECK(h.tokens[2] == testing::ToyGenerate(b.prompt, b.sampling, 78));
  CHECK(h.last[1].timing.last_token_us < h.last[2].timing.last_token_us);
  CHECK(h.scheduler.available_blocks() == 4);
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

TEST_CASE("a request with non-finite logits fails alone and leaves nothing in the cache") {
  const auto prompt = Tokens(0, 150);
  for (const int32_t generated : {0, 1, 3}) {
    INFO("after " << generated << " tokens");
    Harness h(Capacity(12), 400);
    h.executor->non_finite = [&](const SamplingParams& sampling, int32_t position) {
      return sampling.seed == 1 && position == 150 + generated;
    };
    const Request failing = h.Add(1, prompt, 5);
    const Request other = h.Add(2, Tokens(40, 30), 5);
    h.RunDry();
    CHECK(h.finished.at(1).reason == FinishReason::kFailed);
    CHECK(h.finished.at(1).status.code() == StatusCode::kInternal);
    CHECK(h.tokens[1] == testing::ToyGenerate(prompt, failing.sampling, generated));
    CHECK(h.tokens[2] == testing::ToyGenerate(other.prompt, other.sampling, 5));
    h.Add(3, prompt, 1);
    h.RunDry();
    CHECK(h.last[3].timing.cached_tokens == 0);
    CHECK(h.scheduler.available_blocks() == 12);
  }
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

TEST_CASE("when the group is lost, requests go on with the next one, wherever they were") {
  Harness h(Capacity(8), 16);
  const Request a = h.Add(1, Tokens(0, 20), 70);
  const Request b = h.Add(2, Tokens(5, 70), 60);
  int losses = 0;
  for (int i = 0; i < 2000 && h.finished.size() < 2; ++i) {
    const bool planned = !h.Plan().groups.empty();
    if (!planned || i % 3 == 0) h.Answer();
    if (i % 27 == 26) {
      h.scheduler.GroupLost();
      CHECK(h.scheduler.num_waiting() == static_cast<int32_t>(h.scheduler.num_live()));
      CHECK(h.scheduler.Schedule(0) == std::nullopt);
      h.Join(Capacity(5 + ++losses % 4));
    }
  }
  CHECK(losses > 2);
  CHECK(h.tokens[1] == testing::ToyGenerate(a.prompt, a.sampling, 70));
  CHECK(h.tokens[2] == testing::ToyGenerate(b.prompt, b.sampling, 60));
}

TEST_CASE("a request that can never fit is refused with the numbers") {
  Harness h(Capacity(4));
  h.Add(1, Tokens(0, 200), 57);  // 256 tokens of KV: exactly 4 blocks
  h.Add(2, Tokens(0, 200), 58);
  const auto events = h.scheduler.TakeEvents();
  REQUIRE(events.size() == 1);
  CHECK(events[0].id == 2);
  CHECK(events[0].finish->status.code() == StatusCode::kFailedPrecondition);
  const std::string& message = events[0].finish->status.message();
  for (const char* words : {"200 tokens", "max_tokens 58", "5 KV blocks", "have 4"}) {
    CHECK_THAT(message, Catch::Matchers::Contains(words));
  }
  h.RunDry();
  CHECK(h.tokens[1].size() == 57);

  h.Add(3, Tokens(0, 100), 20);
  h.scheduler.GroupLost();
  h.Join(Capacity(1));
  const auto later = h.scheduler.TakeEvents();
  REQUIRE(later.size() == 1);
  CHECK(later[0].id == 3);
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

TEST_CASE("a deadline ends a request whether it waits or runs") {
  Harness h(Capacity(4, 1));
  h.scheduler.Add({.id = 1, .prompt = Tokens(0, 5), .max_tokens = 100, .deadline_us = 500});
  h.scheduler.Add({.id = 2, .prompt = Tokens(0, 5), .max_tokens = 100, .deadline_us = 400});
  h.Plan();
  CHECK(h.scheduler.next_deadline_us() == 400);
  h.scheduler.ExpireDeadlines(399);
  CHECK(h.scheduler.TakeEvents().empty());
  h.scheduler.ExpireDeadlines(500);
  const auto events = h.scheduler.TakeEvents();
  REQUIRE(events.size() == 2);
  CHECK(events[0].id == 2);
  for (const RequestEvent& event : events) {
    CHECK(event.finish->status.code() == StatusCode::kDeadlineExceeded);
  }
  CHECK(h.scheduler.next_deadline_us() == INT64_MAX);
  h.RunDry();
  CHECK(h.scheduler.available_blocks() == 4);
}

}  // namespace hadal
