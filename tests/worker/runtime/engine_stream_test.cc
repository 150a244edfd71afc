// The shipped engine and toy workers on the two ends of a real stream: whatever happens to the
// workers, every request gets the tokens that it would get from one that never fails.

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "proto/step_plan_codec.h"
#include "tests/server/engine/worker_server.h"
#include "tests/server/scheduler/plan_executor.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"
#include "worker/runtime/plan_channel.h"

namespace hadal {
namespace {

const GroupCapacity kToyCapacity{.fingerprint = "toy",
                              .data_parallel = 2,
                              .kv_blocks = 12,
                              .max_slots = 5,
                              .max_step_tokens = 120};

class WaitingSink final : public RequestSink {
 public:
  void OnEvent(RequestEvent event) override {
    std::lock_guard lock(mutex_);
    for (const GeneratedToken& token : event.tokens) tokens_.push_back(token.token);
    finished_ = event.finish.has_value();
    changed_.notify_all();
  }
  std::vector<int32_t> Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return finished_; });
    return tokens_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int32_t> tokens_;
  bool finished_ = false;
};

// Joins again and again; every group but the last dies early.
class Workers {
 public:
  Workers(std::string address, uint64_t seed)
      : address_(std::move(address)), random_(seed), thread_([this] { Run(); }) {}

  int groups() const { return groups_; }
  // Joins no more, and is joined or has gone when this returns.
  void StartLeaving() {
    leaving_ = true;
    while (joining_) std::this_thread::yield();
  }
  void AwaitEnd() { thread_.join(); }

 private:
  void Run() {
    for (;;) {
      joining_ = true;
      if (leaving_) break;
      const auto channel = JoinServer(address_, kToyCapacity, "");
      joining_ = false;
      RunGroup(channel.value().get());
    }
    joining_ = false;
  }

  void RunGroup(PlanChannel* channel) {
    const int life = ++groups_ <= 20 ? static_cast<int>(random_() % 60) : INT32_MAX;
    testing::PlanExecutor executor(kToyCapacity, channel->epoch());
    for (int steps = 0; steps < life; ++steps) {
      const std::optional<std::string> bytes = channel->NextPlan();
      if (!bytes) return;
      const StatusOr<StepPlan> plan =
          DecodeStepPlan({reinterpret_cast<const uint8_t*>(bytes->data()), bytes->size()});
      channel->SendResult(EncodeStepResult(executor.Execute(plan.value())));
    }
    if (random_() % 2 == 0) channel->SendFailure("rank 1 died");
  }

  const std::string address_;
  std::mt19937_64 random_;
  std::atomic<bool> joining_ = false;
  std::atomic<bool> leaving_ = false;
  std::atomic<int> groups_ = 0;
  std::thread thread_;
};

}  // namespace

TEST_CASE("requests outlive their workers") {
  spdlog::set_level(spdlog::level::off);
  const SteadyClock clock;
  const auto engine = MakeEngine({}, &clock);
  engine->Start();
  const testing::TestServer server(MakeWorkerService({}, engine.get()));
  Workers workers(server.address(), testing::RandomSeed());

  std::mt19937_64 random(testing::RandomSeed());
  std::vector<Request> requests;
  std::vector<std::shared_ptr<WaitingSink>> sinks;
  for (int i = 0; i < 120; ++i) {
    Request& request = requests.emplace_back();
    request.id = engine->NextRequestId();
    request.prompt.resize(1 + random() % 150);
    for (int32_t& token : request.prompt) token = static_cast<int32_t>(random() % 3);
    request.sampling.seed = random();
    request.max_tokens = static_cast<int32_t>(1 + random() % 60);
    sinks.push_back(std::make_shared<WaitingSink>());
    REQUIRE(engine->Submit(request, sinks.back()).ok());
  }
  int wrong = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Request& request = requests[i];
    const std::vector<int32_t> expected =
        testing::ToyGenerate(request.prompt, request.sampling, request.max_tokens);
    if (sinks[i]->Wait() != expected) ++wrong;
  }
  CHECK(wrong == 0);
  CHECK(workers.groups() > 3);
  workers.StartLeaving();
  engine->Stop();  // closes the group: its NextPlan returns
  workers.AwaitEnd();
}

}  // namespace hadal
