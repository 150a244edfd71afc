// Rank 0's end of the worker stream, against the shipped server end and against bad servers.

#include "worker/runtime/plan_channel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

#include "proto/step_plan_codec.h"
#include "tests/server/engine/random_plan.h"
#include "tests/server/engine/worker_server.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::RandomPlans;
using testing::TestServer;
using testing::WorkerServer;

const GroupCapacity kCapacity{.fingerprint = "model-1",
                              .tensor_parallel = 4,
                              .data_parallel = 2,
                              .kv_blocks = 100,
                              .max_slots = 8,
                              .max_step_tokens = 512};
constexpr char kSecret[] = "open sesame";

// Null when refused; assertions are for the test's own thread.
std::unique_ptr<PlanChannel> TryJoin(const std::string& address) {
  StatusOr<std::unique_ptr<PlanChannel>> channel = JoinServer(address, kCapacity, kSecret);
  return channel.ok() ? std::move(channel).value() : nullptr;
}

std::unique_ptr<PlanChannel> Join(const WorkerServer& fixture) {
  auto channel = TryJoin(fixture.server.address());
  REQUIRE(channel != nullptr);
  return channel;
}

StatusOr<StepPlan> NextPlan(PlanChannel* channel) {
  const std::optional<std::string> bytes = channel->NextPlan();
  if (!bytes) return channel->status();
  return DecodeStepPlan({reinterpret_cast<const uint8_t*>(bytes->data()), bytes->size()});
}

bool Contains(const Status& status, const std::string& text) {
  return status.message().find(text) != std::string::npos;
}

}  // namespace

TEST_CASE("plans and results arrive as they were sent, in order") {
  WorkerServer fixture;
  const auto channel = Join(fixture);
  CHECK(channel->epoch() == 1);
  CHECK(channel->vocab_limit() == 1234);
  CHECK(channel->status().ok());
  const auto group = fixture.engine.WaitForGroup();
  REQUIRE(group != nullptr);
  CHECK(group->capacity() == kCapacity);

  RandomPlans random(testing::RandomSeed());
  StepPlan expected = random.Plan(1, 1);
  group->Submit(expected);
  std::vector<StepResult> results;
  for (uint64_t step = 1; step <= 500; ++step) {
    StepPlan next = random.Plan(1, step + 1);
    group->Submit(next);  // one ahead
    const StatusOr<StepPlan> plan = NextPlan(channel.get());
    REQUIRE(plan.ok());
    REQUIRE(*plan == expected);
    expected = std::move(next);
    results.push_back(random.Result(1, step));
    channel->SendResult(EncodeStepResult(results.back()));
  }
  CHECK(fixture.engine.WaitForResults(results.size()) == results);
}

TEST_CASE("messages beyond the default limit of 4 MiB") {
  WorkerServer fixture;
  const auto channel = Join(fixture);
  const auto group = fixture.engine.WaitForGroup();
  REQUIRE(group != nullptr);
  RandomPlans random(testing::RandomSeed());
  StepPlan plan{.epoch = 1, .step = 1, .groups = {1, GroupPlan{}}};
  plan.groups[0].leaves.resize(4'000'000 + random.Below(1000));
  for (int32_t& leave : plan.groups[0].leaves) leave = random.Below(1 << 20);
  group->Submit(plan);
  const StatusOr<StepPlan> received = NextPlan(channel.get());
  REQUIRE(received.ok());
  CHECK((*received == plan));

  StepResult result{.epoch = 1, .step = 1, .groups = {1, GroupResult{}}};
  result.groups[0].prompt_logprobs.push_back({3, 0, std::vector<float>(3'000'000, -1.5F)});
  channel->SendResult(EncodeStepResult(result));
  const std::vector<StepResult> results = fixture.engine.WaitForResults(1);
  REQUIRE(results.size() == 1);
  CHECK((results[0] == result));
}

TEST_CASE("a refusal for good is returned at once, with the server's sentence") {
  WorkerServer fixture;
  SECTION("secret") {
    const auto channel = JoinServer(fixture.server.address(), kCapacity, "wrong");
    CHECK(channel.status().code() == StatusCode::kPermissionDenied);
    CHECK(Contains(channel.status(), "--join-secret-file"));
    CHECK(Contains(channel.status(), fixture.server.address()));
  }
  SECTION("model") {
    GroupCapacity capacity = kCapacity;
    capacity.fingerprint = "model-2";
    const auto channel = JoinServer(fixture.server.address(), capacity, kSecret);
    CHECK(channel.status().code() == StatusCode::kFailedPrecondition);
    CHECK(Contains(channel.status(), "different model directories"));
  }
  SECTION("capacity") {
    GroupCapacity capacity = kCapacity;
    capacity.kv_blocks = 0;
    const auto channel = JoinServer(fixture.server.address(), capacity, kSecret);
    CHECK(channel.status().code() == StatusCode::kInvalidArgument);
    CHECK(Contains(channel.status(), "kv_blocks"));
  }
  CHECK(fixture.engine.WaitForLosses(0).empty());
}

TEST_CASE("a second group waits until the first has left") {
  WorkerServer fixture;
  auto first = Join(fixture);
  std::atomic<bool> joined = false;
  std::unique_ptr<PlanChannel> second;
  std::thread waiting([&] {
    second = TryJoin(fixture.server.address());
    joined = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  CHECK(!joined);
  first.reset();
  waiting.join();
  REQUIRE(second != nullptr);
  CHECK(second->epoch() == 2);
  CHECK(fixture.engine.WaitForLosses(1).size() == 1);
}

TEST_CASE("the server closes the group") {
  WorkerServer fixture;
  const auto channel = Join(fixture);
  const auto group = fixture.engine.WaitForGroup();
  REQUIRE(group != nullptr);
  std::thread closer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    group->Close(Status(StatusCode::kDeadlineExceeded, "a step was not answered within 5 ms"));
    fixture.engine.Forget();
  });
  CHECK(!channel->NextPlan().has_value());  // waits
  closer.join();
  CHECK(channel->status().code() == StatusCode::kDeadlineExceeded);
  CHECK(channel->status().message() == "a step was not answered within 5 ms");
  // Too late, and harmless.
  channel->SendResult("late");
  channel->SendFailure("later");
  CHECK(!channel->NextPlan().has_value());
  const auto again = Join(fixture);
  CHECK(again->epoch() == 2);
  CHECK(fixture.engine.WaitForLosses(0).empty());
}

TEST_CASE("a worker that dies is lost once, whatever was in flight") {
  WorkerServer fixture;
  RandomPlans random(testing::RandomSeed());
  const int rounds = 200;
  for (int round = 1; round <= rounds; ++round) {
    auto channel = Join(fixture);
    const auto epoch = static_cast<uint64_t>(round);
    REQUIRE(channel->epoch() == epoch);
    const auto group = fixture.engine.WaitForGroup();
    REQUIRE(group != nullptr);
    std::thread submitter([&, plans = random.Below(3)] {
      RandomPlans own(epoch);
      for (int i = 1; i <= plans; ++i) group->Submit(own.Plan(epoch, i));
    });
    if (random.Below(2) == 0) channel->SendResult(EncodeStepResult(random.Result(epoch, 1)));
    if (random.Below(2) == 0) std::this_thread::yield();
    if (random.Below(8) == 0) {
      group->Close(Unavailable("closed"));  // while it dies
      fixture.engine.OnGroupLost(epoch, Unavailable("closed"));
    }
    channel.reset();
    submitter.join();
    REQUIRE(fixture.engine.WaitForLosses(round).size() == static_cast<size_t>(round));
  }
  const auto losses = fixture.engine.WaitForLosses(rounds);
  REQUIRE(losses.size() == static_cast<size_t>(rounds));
  for (int i = 0; i < rounds; ++i) CHECK(losses[i].first == static_cast<uint64_t>(i + 1));
}

TEST_CASE("the cause of a failure reaches the engine, in any bytes") {
  WorkerServer fixture;
  auto channel = Join(fixture);
  // The process may exit right after SendFailure has returned.
  channel->SendFailure("rank 2 on host-b: \xff bad\n" + std::string(50'000, 'x'));
  CHECK(!channel->NextPlan().has_value());
  const auto losses = fixture.engine.WaitForLosses(1);
  REQUIRE(losses.size() == 1);
  CHECK(Contains(losses[0].second, "rank 2 on host-b: ? bad?xxx"));
}

TEST_CASE("a server that comes late, goes and comes back") {
  int port = 0;
  {
    WorkerServer chosen;
    port = chosen.server.port();
  }
  const std::string address = "127.0.0.1:" + std::to_string(port);
  std::unique_ptr<PlanChannel> channel;
  std::thread early([&] { channel = TryJoin(address); });
  std::this_thread::sleep_for(std::chrono::milliseconds(250));
  {
    WorkerServer fixture(testing::kWorkerServerOptions, port);
    early.join();
    REQUIRE(channel != nullptr);
  }
  CHECK(!channel->NextPlan().has_value());
  CHECK(!channel->status().ok());
  channel.reset();
  std::thread again([&] { channel = TryJoin(address); });
  std::this_thread::sleep_for(std::chrono::milliseconds(250));
  WorkerServer fixture(testing::kWorkerServerOptions, port);
  again.join();
  REQUIRE(channel != nullptr);
  CHECK(channel->epoch() == 1);
}

TEST_CASE("time of a step's way to the worker and back") {
  WorkerServer fixture;
  const auto channel = Join(fixture);
  const auto group = fixture.engine.WaitForGroup();
  REQUIRE(group != nullptr);
  std::thread worker([&] {
    while (std::optional<std::string> plan = channel->NextPlan()) {
      channel->SendResult(EncodeStepResult({.epoch = 1, .step = 1, .groups = {}}));
    }
  });
  StepPlan plan{.epoch = 1, .step = 1, .groups = {1, GroupPlan{}}};
  for (int32_t slot = 0; slot < 16; ++slot) {
    plan.groups[0].rows.push_back({slot, 100, 1, RowKind::kDecode, true});
    plan.groups[0].tokens.push_back(kSampledToken);
  }
  std::vector<double> us;
  for (size_t i = 1; i <= 1000; ++i) {
    const auto start = std::chrono::steady_clock::now();
    group->Submit(plan);
    REQUIRE(fixture.engine.AwaitResult(i));
    us.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
                     .count());
  }
  std::ranges::sort(us);
  std::printf("plan of 16 rows to the worker and its result back: median %.0f us, p99 %.0f us\n",
              us[us.size() / 2], us[us.size() * 99 / 100]);
  group->Close(Unavailable("over"));
  worker.join();
}

}  // namespace hadal
