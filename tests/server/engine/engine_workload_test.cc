// Random workloads through the whole engine on one thread: whatever arrives, is cancelled, expires,
// is preempted or loses its workers, every request generates exactly what it would have generated
// alone.

#include <spdlog/spdlog.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "server/engine/engine.h"
#include "server/kv/kv_cache.h"
#include "tests/server/engine/fake_worker_group.h"
#include "tests/server/engine/workload_client.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::Client;
using testing::FakeWorkerGroup;
using testing::RecordingSink;
using testing::SimulatedClock;
using testing::Totals;

class Workload {
 public:
  Workload(uint64_t seed, Totals* totals) : random_(seed), totals_(totals) {
    // max_step_tokens varies too; the smaller of the two counts.
    engine_ = MakeEngine({.step_token_budget = Uniform(3, 150)}, &clock_);
    for (int i = 0; i < 4; ++i) prefixes_.push_back(Tokens(Uniform(1, 260)));
  }

  void Run() {
    const int steps = Uniform(100, 600);
    const int clients = Uniform(1, 50);
    for (int i = 0; i < steps; ++i) {
      Act(clients);
      Pass();
    }
    Settle();
    CheckAll();
  }

 private:
  int Uniform(int low, int high) {
    return low + static_cast<int>(random_() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(int percent) { return Uniform(1, 100) <= percent; }

  std::vector<int32_t> Tokens(int count) {
    std::vector<int32_t> tokens(static_cast<size_t>(count));
    for (int32_t& token : tokens) token = Uniform(0, testing::kToyVocabulary - 1);
    return tokens;
  }

  void Act(int max_clients) {
    clock_.now_us += Uniform(1, 2000);
    if (clients_.size() < static_cast<size_t>(max_clients) && Chance(30)) Arrive();
    if (!clients_.empty() && Chance(2)) CancelOne();
    if (group_ == nullptr && Chance(20)) Join(Uniform(2, 24));
    if (group_ != nullptr && Chance(1)) Lose();
    if (group_ != nullptr && !group_->results.empty() && Chance(70)) Answer();
  }

  void Arrive() {
    Client client;
    Request& request = client.request;
    request.id = engine_->NextRequestId();
    request.prompt = Prompt();
    request.sampling.temperature = static_cast<float>(Uniform(0, 10)) / 10;
    request.sampling.seed = next_seed_++;
    request.max_tokens = Uniform(1, Chance(30) ? 200 : 20);
    if (Chance(30)) request.stop_token_ids = Tokens(Uniform(1, 3));
    request.prompt_logprobs = Chance(15);
    if (Chance(10)) request.deadline_us = clock_.now_us + Uniform(0, 400'000);
    by_seed_[request.sampling.seed] = request;
    if (Chance(3)) {
      const auto length = static_cast<int>(request.prompt.size());
      nan_at_[request.sampling.seed] = length + Uniform(0, request.max_tokens - 1);
    }
    REQUIRE(engine_->Submit(request, client.sink).ok());
    clients_.push_back(client);
  }

  std::vector<int32_t> Prompt() {
    std::vector<int32_t> prompt;
    if (Chance(60)) prompt = prefixes_[static_cast<size_t>(Uniform(0, 3))];
    if (prompt.size() >= 64 && Chance(20)) {  // whole blocks, perhaps all of them cached
      prompt.resize(prompt.size() / 64 * 64);
      return prompt;
    }
    const auto append = [&](const std::vector<int32_t>& tokens) {
      prompt.insert(prompt.end(), tokens.begin(), tokens.end());
    };
    if (!clients_.empty() && Chance(20)) {  // the next turn of a conversation
      const Client& earlier =
          clients_[static_cast<size_t>(Uniform(0, static_cast<int>(clients_.size()) - 1))];
      prompt = earlier.request.prompt;
      append(testing::ToyGenerate(prompt, earlier.request.sampling, earlier.request.max_tokens));
    }
    append(Tokens(Uniform(1, Chance(20) ? 400 : 40)));
    prompt.resize(std::min<size_t>(prompt.size(), 900));
    return prompt;
  }

  void CancelOne() {
    Client& client =
        clients_[static_cast<size_t>(Uniform(0, static_cast<int>(clients_.size()) - 1))];
    if (client.cancelled || client.sink->finish) return;
    engine_->Cancel(client.request.id);
    client.cancelled = true;
    client.events_at_cancel = client.sink->events;
  }

  void Join(int kv_blocks) {
    const GroupCapacity capacity{.fingerprint = "toy",
                                 .data_parallel = Uniform(1, 3),
                                 .kv_blocks = kv_blocks,
                                 .max_slots = Uniform(1, 9),
                                 .max_step_tokens = Uniform(2, 200)};
    group_ = std::make_shared<FakeWorkerGroup>(capacity, ++epochs_);
    group_->executor.exhausted = [this](const SamplingParams& sampling, int32_t position) {
      const Request& request = by_seed_.at(sampling.seed);
      return position >= static_cast<int32_t>(request.prompt.size()) + request.max_tokens - 1;
    };
    group_->executor.non_finite = [this](const SamplingParams& sampling, int32_t position) {
      const auto it = nan_at_.find(sampling.seed);
      return it != nan_at_.end() && it->second == position;
    };
    const StatusOr<uint64_t> epoch = engine_->Join(group_);
    REQUIRE(epoch.ok());
    REQUIRE(*epoch == epochs_);
    smallest_group_ = std::min(smallest_group_, kv_blocks);
    ++totals_->groups;
  }

  void Lose() {
    if (Chance(50)) {
      engine_->OnGroupLost(epochs_, Unavailable("rank 1 died"));
    } else if (!group_->results.empty()) {
      StepResult wrong = group_->TakeResult();
      wrong.step += 1;
      engine_->OnResult(wrong);
      Pass();
      REQUIRE(group_->closed);
    } else {
      return;
    }
    CountGroup();
    group_.reset();
  }

  void CountGroup() {
    totals_->admissions += group_->executor.enters;
    totals_->recomputed_rows += group_->executor.recomputed_rows;
  }

  void Answer() {
    StepResult result = group_->TakeResult();
    result.step_us = Uniform(0, 3000);
    engine_->OnResult(std::move(result));
  }

  void Pass() {
    const int64_t again_us = engine_->RunOnce();
    REQUIRE(again_us >= 0);
    const EngineStats stats = engine_->stats();
    const bool joined = group_ != nullptr && !group_->closed;
    REQUIRE(stats.ready == (joined && !stats.draining));
    REQUIRE((stats.epoch != 0) == joined);
    REQUIRE(stats.free_blocks <= stats.total_blocks);
  }

  // Until nothing is left to do: with workers that can hold everything.
  void Settle() {
    engine_->StartDrain();
    for (int i = 0; i < 200'000 && !engine_->Drained(); ++i) {
      clock_.now_us += 500;
      if (group_ == nullptr) Join(40);
      Pass();
      if (!group_->results.empty()) Answer();
    }
    REQUIRE(engine_->Drained());
    while (!group_ || !group_->results.empty()) {  // rows computed in vain
      if (group_ == nullptr) Join(40);
      if (!group_->results.empty()) Answer();
      Pass();
    }
    const EngineStats stats = engine_->stats();
    CHECK(stats.running == 0);
    CHECK(stats.waiting == 0);
    CHECK(stats.free_blocks == stats.total_blocks);
    CountGroup();
  }

  void CheckAll() {
    int64_t scheduled_us = 0;
    for (const Client& client : clients_) {
      INFO("request " << client.request.id);
      ++totals_->requests;
      testing::CheckTokens(client, nan_at_.contains(client.request.sampling.seed), totals_);
      if (client.cancelled) {
        ++totals_->cancelled;
        CHECK(client.sink->events == client.events_at_cancel);
        continue;
      }
      REQUIRE(client.sink->finish.has_value());
      CheckFinish(client);
      // First come, first served.
      if (client.sink->timing.scheduled_us == 0) continue;
      CHECK(client.sink->timing.scheduled_us >= scheduled_us);
      scheduled_us = client.sink->timing.scheduled_us;
      totals_->cached_tokens += client.sink->timing.cached_tokens;
    }
  }

  void CheckFinish(const Client& client) {
    const RequestEvent::Finish& finish = *client.sink->finish;
    if (finish.reason != FinishReason::kFailed) return;
    const Request& request = client.request;
    const auto kv_tokens = static_cast<int64_t>(request.prompt.size()) + request.max_tokens - 1;
    switch (finish.status.code()) {
      case StatusCode::kDeadlineExceeded:
        CHECK(request.deadline_us <= clock_.now_us);
        ++totals_->expired;
        break;
      case StatusCode::kFailedPrecondition:
        CHECK(BlocksFor(kv_tokens) > smallest_group_);
        ++totals_->too_large;
        break;
      case StatusCode::kInternal:
        if (finish.status.message().starts_with("the workers were lost 3 times")) {
          CHECK(epochs_ > 3);
          ++totals_->lost_thrice;
          break;
        }
        CHECK(nan_at_.at(request.sampling.seed) ==
              static_cast<int32_t>(request.prompt.size() + client.sink->tokens.size()));
        ++totals_->non_finite;
        break;
      default:
        FAIL("unexpected " << finish.status.ToString());
    }
  }

  std::mt19937_64 random_;
  Totals* const totals_;
  SimulatedClock clock_;
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<FakeWorkerGroup> group_;
  uint64_t epochs_ = 0;
  int smallest_group_ = 40;
  std::vector<std::vector<int32_t>> prefixes_;
  std::vector<Client> clients_;
  std::map<uint64_t, Request> by_seed_;
  std::map<uint64_t, int32_t> nan_at_;  // seed -> position whose sample is not finite
  uint64_t next_seed_ = 1;
};

}  // namespace

TEST_CASE("whatever happens, every request generates what it would have generated alone") {
  spdlog::set_level(spdlog::level::off);
  Totals totals;
  for (uint64_t i = 0; i < 1500; ++i) {
    const uint64_t seed = testing::RandomSeed() + i;
    INFO("HADAL_TEST_SEED=" << seed << " runs this workload first");
    Workload(seed, &totals).Run();
  }
  WARN(totals.requests << " requests, " << totals.admissions << " admissions, "
                       << totals.recomputed_rows << " recomputed rows, " << totals.cached_tokens
                       << " cached tokens, " << totals.groups << " groups, " << totals.stopped
                       << '/' << totals.length << '/' << totals.expired << '/' << totals.too_large
                       << '/' << totals.non_finite << '/' << totals.lost_thrice << '/'
                       << totals.cancelled);
  // The workloads must have gone through what they are meant to test.
  CHECK(totals.admissions > totals.requests + 50);
  CHECK(totals.recomputed_rows > 20);
  CHECK(totals.cached_tokens > 1000);
  CHECK(totals.groups > 320);
  for (const int64_t count : {totals.stopped, totals.length, totals.expired, totals.too_large,
                              totals.non_finite, totals.lost_thrice, totals.cancelled}) {
    CHECK(count > 10);
  }
}

}  // namespace hadal
