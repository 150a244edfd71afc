#include "server/engine/engine.h"

#include <spdlog/spdlog.h>

#include <memory>
#include <numeric>
#include <vector>

#include "tests/server/engine/fake_worker_group.h"
#include "tests/support/catch.h"

namespace hadal {
namespace {

using testing::FakeWorkerGroup;
using testing::RecordingSink;
using testing::SimulatedClock;

constexpr int64_t kStepDeadlineUs = 1'000'000;
constexpr int32_t kVocabLimit = testing::kToyVocabulary;

GroupCapacity Capacity() {
  return {.fingerprint = "toy", .kv_blocks = 16, .max_slots = 4, .max_step_tokens = 256};
}

struct Fixture {
  explicit Fixture(EngineOptions options = {}) {
    spdlog::set_level(spdlog::level::off);
    options.step_deadline_us = kStepDeadlineUs;
    options.vocab_limit = kVocabLimit;
    engine = MakeEngine(options, &clock);
  }

  std::shared_ptr<FakeWorkerGroup> Join(GroupCapacity capacity = Capacity()) {
    auto group = std::make_shared<FakeWorkerGroup>(capacity, ++epochs);
    const StatusOr<uint64_t> epoch = engine->Join(group);
    REQUIRE(epoch.ok());
    REQUIRE(*epoch == epochs);
    engine->RunOnce();
    return group;
  }

  Request MakeRequest(int32_t prompt_tokens, int32_t max_tokens) {
    Request request{.id = engine->NextRequestId(), .max_tokens = max_tokens};
    request.prompt.resize(static_cast<size_t>(prompt_tokens));
    std::iota(request.prompt.begin(), request.prompt.end(), 0);
    request.sampling.seed = request.id;
    return request;
  }

  std::shared_ptr<RecordingSink> Submit(const Request& request) {
    auto sink = std::make_shared<RecordingSink>();
    const Status status = engine->Submit(request, sink);
    INFO(status.ToString());
    REQUIRE(status.ok());
    return sink;
  }

  void Answer(FakeWorkerGroup* group) {
    engine->OnResult(group->TakeResult());
    engine->RunOnce();
  }

  SimulatedClock clock;
  std::unique_ptr<Engine> engine;
  uint64_t epochs = 0;
};

std::vector<int32_t> Expected(const Request& request) {
  return testing::ToyGenerate(request.prompt, request.sampling, request.max_tokens);
}

}  // namespace

TEST_CASE("a request is answered token by token") {
  Fixture f;
  const auto group = f.Join();
  const Request request = f.MakeRequest(5, 3);
  const auto sink = f.Submit(request);
  f.clock.now_us = 100;
  f.engine->RunOnce();
  CHECK(group->results.size() == 2);  // one ahead
  for (size_t tokens = 1; tokens <= 3; ++tokens) {
    f.clock.now_us += 50;
    f.Answer(group.get());
    CHECK(sink->tokens.size() == tokens);
  }
  CHECK(sink->tokens == Expected(request));
  CHECK(sink->finish->reason == FinishReason::kLength);
  CHECK(sink->timing.arrival_us == 1);
  CHECK(sink->timing.scheduled_us == 100);
  CHECK(sink->timing.first_token_us == 150);
  CHECK(sink->timing.last_token_us == 250);
  CHECK(f.engine->stats().generated_tokens == 3);
  CHECK(f.engine->stats().steps == 3);
}

TEST_CASE("an idle engine asks not to be woken") {
  Fixture f;
  CHECK(f.engine->RunOnce() == INT64_MAX);
  const auto group = f.Join();
  CHECK(f.engine->RunOnce() == INT64_MAX);
  const auto sink = f.Submit(f.MakeRequest(3, 1));
  CHECK(f.engine->RunOnce() == kStepDeadlineUs);
  f.Answer(group.get());
  CHECK(sink->finish);
  CHECK(f.engine->RunOnce() == INT64_MAX);
  Request request = f.MakeRequest(3, 1);
  request.deadline_us = f.clock.now_us + 77;
  f.Submit(request);
  CHECK(f.engine->RunOnce() == 77);
}

TEST_CASE("too many waiting requests or tokens are refused, running ones do not count") {
  Fixture f({.max_waiting_requests = 3, .max_waiting_tokens = 100});
  const auto submit = [&f](int32_t tokens) {
    return f.engine->Submit(f.MakeRequest(tokens, 2), std::make_shared<RecordingSink>()).code();
  };
  CHECK(submit(500) == StatusCode::kOk);  // alone it is not refused for its length
  CHECK(submit(1) == StatusCode::kResourceExhausted);
  const auto group = f.Join();
  CHECK(f.engine->stats().running == 1);
  CHECK(submit(60) == StatusCode::kOk);
  CHECK(submit(41) == StatusCode::kResourceExhausted);
  CHECK(submit(20) == StatusCode::kOk);
  CHECK(submit(19) == StatusCode::kOk);
  CHECK(submit(1) == StatusCode::kResourceExhausted);
  while (!group->results.empty()) f.Answer(group.get());
  CHECK(f.engine->stats().waiting == 0);
  CHECK(submit(1) == StatusCode::kOk);
}

TEST_CASE("requests that are not well formed are refused by name") {
  Fixture f;
  const auto refuse = [&f](const Request& request, const char* word) {
    const Status status = f.engine->Submit(request, std::make_shared<RecordingSink>());
    CHECK(status.code() == StatusCode::kInvalidArgument);
    CHECK_THAT(status.message(), Catch::Matchers::Contains(word));
  };
  refuse(f.MakeRequest(0, 1), "prompt");
  refuse(f.MakeRequest(1, 0), "max_tokens");
  Request negative = f.MakeRequest(3, 1);
  negative.prompt[1] = kSampledToken;
  refuse(negative, "prompt");
}

TEST_CASE("a second group, an empty one and another model may not join") {
  Fixture f;
  const auto join = [&f](const GroupCapacity& capacity) {
    return f.engine->Join(std::make_shared<FakeWorkerGroup>(capacity, 0)).status().code();
  };
  GroupCapacity capacity = Capacity();
  capacity.kv_blocks = 0;
  CHECK(join(capacity) == StatusCode::kInvalidArgument);
  f.Join();
  CHECK(join(Capacity()) == StatusCode::kAborted);
  f.engine->OnGroupLost(1, Unavailable("gone"));
  capacity = Capacity();
  capacity.fingerprint = "other";
  CHECK(join(capacity) == StatusCode::kFailedPrecondition);
  f.Join();  // at once, before the loss was taken from the inbox
  CHECK(f.engine->stats().epoch == 2);
}

TEST_CASE("readiness follows the group") {
  Fixture f;
  CHECK(!f.engine->stats().ready);
  f.Join();
  CHECK(f.engine->stats().ready);
  CHECK(f.engine->stats().total_blocks == 16);
  f.engine->OnGroupLost(7, Unavailable("another epoch"));
  CHECK(f.engine->stats().ready);
  f.engine->OnGroupLost(1, Unavailable("rank 0 died"));
  CHECK(!f.engine->stats().ready);
  f.engine->RunOnce();
  CHECK(f.engine->stats().epoch == 0);
}

TEST_CASE("an unanswered step closes the group; its requests continue with the next one") {
  Fixture f;
  auto group = f.Join();
  const Request request = f.MakeRequest(70, 6);
  const auto sink = f.Submit(request);
  f.engine->RunOnce();
  f.clock.now_us += kStepDeadlineUs - 1;
  f.Answer(group.get());
  CHECK(!group->closed);
  // The second plan runs only since the first was answered.
  f.clock.now_us += kStepDeadlineUs - 1;
  CHECK(f.engine->RunOnce() == 1);
  CHECK(!group->closed);
  f.clock.now_us += 1;
  f.engine->RunOnce();
  CHECK(group->closed);
  CHECK(group->close_reason.code() == StatusCode::kDeadlineExceeded);
  CHECK(!f.engine->stats().ready);
  CHECK(sink->tokens.size() == 1);
  CHECK(!sink->finish);

  f.Answer(group.get());  // too late: nobody listens
  CHECK(sink->tokens.size() == 1);
  group = f.Join();
  while (!group->results.empty()) f.Answer(group.get());
  CHECK(sink->tokens == Expected(request));
  CHECK(sink->finish->reason == FinishReason::kLength);
}

TEST_CASE("a result that does not answer the plan closes the group with the reason") {
  Fixture f;
  auto group = f.Join();
  const Request request = f.MakeRequest(5, 4);
  const auto sink = f.Submit(request);
  f.engine->RunOnce();
  StepResult result = group->TakeResult();
  result.groups[0].samples.clear();
  f.engine->OnResult(result);
  f.engine->RunOnce();
  CHECK(group->closed);
  CHECK_THAT(group->close_reason.message(), Catch::Matchers::Contains("samples"));
  group = f.Join();
  while (!group->results.empty()) f.Answer(group.get());
  CHECK(sink->tokens == Expected(request));

  // An id that has no token, of which the next workers would die.
  const auto last = f.Submit(f.MakeRequest(5, 4));
  f.engine->RunOnce();
  result = group->TakeResult();
  result.groups[0].samples[0].token = kVocabLimit;
  f.engine->OnResult(result);
  f.engine->RunOnce();
  CHECK(group->closed);
  CHECK(last->tokens.empty());
  group = f.Join();
  while (!group->results.empty()) f.Answer(group.get());

  // A result although nothing is in flight.
  f.engine->OnResult({.epoch = 3, .step = 99, .groups = std::vector<GroupResult>(1)});
  f.engine->RunOnce();
  CHECK(group->closed);
}

TEST_CASE("a cancelled request is told nothing more and frees its blocks") {
  Fixture f;
  const auto group = f.Join();
  const auto sink = f.Submit(f.MakeRequest(100, 50));
  const Request other = f.MakeRequest(3, 4);
  f.engine->RunOnce();
  const auto kept = f.Submit(other);
  f.Answer(group.get());
  f.engine->Cancel(1);
  f.engine->Cancel(12345);
  const int events = sink->events;
  while (!group->results.empty()) f.Answer(group.get());
  CHECK(sink->events == events);
  CHECK(kept->tokens == Expected(other));
  CHECK(f.engine->stats().free_blocks == 16);
}

TEST_CASE("draining refuses new requests and finishes the old ones") {
  Fixture f;
  const auto group = f.Join();
  const Request request = f.MakeRequest(3, 2);
  const auto sink = f.Submit(request);
  const auto cancelled = f.MakeRequest(3, 2);
  f.Submit(cancelled);
  CHECK(!f.engine->Drained());
  f.engine->StartDrain();
  CHECK(!f.engine->Drained());
  const EngineStats stats = f.engine->stats();
  CHECK((stats.draining && !stats.ready && stats.epoch == 1));
  CHECK(f.engine->Submit(f.MakeRequest(3, 2), std::make_shared<RecordingSink>()).code() ==
        StatusCode::kUnavailable);
  f.engine->Cancel(cancelled.id);
  f.engine->RunOnce();
  while (!group->results.empty()) f.Answer(group.get());
  CHECK(sink->tokens == Expected(request));
  CHECK(f.engine->Drained());
}

TEST_CASE("stopping ends the group and every request") {
  Fixture f;
  const auto group = f.Join();
  const auto running = f.Submit(f.MakeRequest(3, 20));
  f.engine->RunOnce();
  f.Answer(group.get());
  const auto waiting = f.Submit(f.MakeRequest(3, 20));
  f.engine->Stop();
  CHECK(group->closed);
  CHECK(group->close_reason.code() == StatusCode::kUnavailable);
  for (const auto& sink : {running, waiting}) {
    REQUIRE(sink->finish);
    CHECK(sink->finish->reason == FinishReason::kFailed);
    CHECK(sink->finish->status.code() == StatusCode::kUnavailable);
  }
  CHECK(running->tokens.size() == 1);
  CHECK(f.engine->Submit(f.MakeRequest(3, 2), running).code() == StatusCode::kUnavailable);
  CHECK(!f.engine->stats().ready);
}

}  // namespace hadal
