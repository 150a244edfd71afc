// Requests that end early, give way or lose their workers.

#include "tests/server/scheduler/scheduler_harness.h"
#include "tests/support/catch.h"

namespace hadal {

using testing::Capacity;
using testing::Harness;
using testing::Rows;
using testing::Tokens;

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

TEST_CASE("a default max_tokens is lowered to what the blocks hold") {
  Harness h(Capacity(4));
  const auto add = [&](uint64_t id, int32_t prompt_tokens) {
    Request request{.id = id, .prompt = Tokens(0, prompt_tokens), .max_tokens = 1000};
    request.max_tokens_is_default = true;
    request.sampling.seed = id;
    h.scheduler.Add(request);
    return request;
  };
  const Request long_one = add(1, 200);
  const Request whole = add(2, 256);
  add(3, 257);  // the prompt alone is too much
  h.RunDry();
  for (const Request& request : {long_one, whole}) {
    const int32_t held = 257 - static_cast<int32_t>(request.prompt.size());
    CHECK(h.finished.at(request.id).reason == FinishReason::kLength);
    CHECK(h.tokens[request.id] == testing::ToyGenerate(request.prompt, request.sampling, held));
  }
  CHECK(h.finished.at(3).status.code() == StatusCode::kFailedPrecondition);
  CHECK_THAT(h.finished.at(3).status.message(), Catch::Matchers::Contains("prompt of 257 tokens"));

  // The next group holds less, but more than there is already.
  const Request other = add(4, 100);
  h.Plan();
  h.Answer();
  h.scheduler.GroupLost();
  h.Join(Capacity(2));
  h.RunDry();
  CHECK(h.tokens[4] == testing::ToyGenerate(other.prompt, other.sampling, 29));
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
