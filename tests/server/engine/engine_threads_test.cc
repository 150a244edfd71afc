// The engine on its own thread, workers on another, many clients on theirs. Run under
// ThreadSanitizer too.

#include <spdlog/spdlog.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "server/engine/engine.h"
#include "tests/server/scheduler/plan_executor.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

// Executes plans on a thread of its own and reports to the engine, like a remote group.
class ThreadedWorkerGroup final : public WorkerGroup {
 public:
  ThreadedWorkerGroup(const GroupCapacity& capacity, uint64_t epoch, Engine* engine)
      : capacity_(capacity), epoch_(epoch), engine_(engine), thread_([this] { Run(); }) {}
  ~ThreadedWorkerGroup() override {
    Close(OkStatus());
    thread_.join();
  }

  const GroupCapacity& capacity() const override { return capacity_; }
  void Submit(const StepPlan& plan) override {
    std::lock_guard lock(mutex_);
    plans_.push_back(plan);
    wake_.notify_one();
  }
  void Close(const Status&) override {
    std::lock_guard lock(mutex_);
    closed_ = true;
    wake_.notify_one();
  }
  // As if a rank had died.
  void Die() {
    Close(OkStatus());
    engine_->OnGroupLost(epoch_, Unavailable("rank 1 died"));
  }

 private:
  void Run() {
    testing::PlanExecutor executor(capacity_, epoch_);
    while (true) {
      StepPlan plan;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return closed_ || !plans_.empty(); });
        if (closed_) return;
        plan = std::move(plans_.front());
        plans_.pop_front();
      }
      StepResult result = executor.Execute(plan);
      result.step_us = 10;
      engine_->OnResult(std::move(result));
    }
  }

  const GroupCapacity capacity_;
  const uint64_t epoch_;
  Engine* const engine_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<StepPlan> plans_;
  bool closed_ = false;
  std::thread thread_;
};

class BlockingSink final : public RequestSink {
 public:
  void OnEvent(RequestEvent event) override {
    std::lock_guard lock(mutex_);
    for (const GeneratedToken& token : event.tokens) tokens_.push_back(token.token);
    finish_ = event.finish;
    ++events_;
    changed_.notify_all();
  }
  // The tokens, once the request has finished.
  std::vector<int32_t> Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return finish_.has_value(); });
    return tokens_;
  }
  void WaitForEvent() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return events_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int32_t> tokens_;
  std::optional<RequestEvent::Finish> finish_;
  int events_ = 0;
};

const GroupCapacity kCapacity{.fingerprint = "toy",
                              .data_parallel = 2,
                              .kv_blocks = 12,
                              .max_slots = 5,
                              .max_step_tokens = 120};

Request RandomRequest(Engine* engine, std::mt19937_64* random) {
  Request request{.id = engine->NextRequestId()};
  request.prompt.resize(1 + (*random)() % 150);
  for (int32_t& token : request.prompt) token = static_cast<int32_t>((*random)() % 3);
  request.sampling.seed = (*random)();
  request.max_tokens = static_cast<int32_t>(1 + (*random)() % 40);
  return request;
}

// What one client does; counts the answers that are not what they should be.
void RunClient(Engine* engine, uint64_t seed, int requests, std::atomic<int>* wrong) {
  std::mt19937_64 random(seed);
  for (int i = 0; i < requests; ++i) {
    const Request request = RandomRequest(engine, &random);
    auto sink = std::make_shared<BlockingSink>();
    Status status = engine->Submit(request, sink);
    while (status.code() == StatusCode::kResourceExhausted) {
      std::this_thread::yield();
      status = engine->Submit(request, sink);
    }
    if (!status.ok()) {
      ++*wrong;
    } else if (random() % 5 == 0) {
      if (random() % 2 == 0) sink->WaitForEvent();
      engine->Cancel(request.id);
    } else if (sink->Wait() !=
               testing::ToyGenerate(request.prompt, request.sampling, request.max_tokens)) {
      ++*wrong;
    }
  }
}

}  // namespace

TEST_CASE("many client threads, workers that die and come back") {
  spdlog::set_level(spdlog::level::off);
  const SteadyClock clock;
  const auto engine = MakeEngine({.max_waiting_requests = 6}, &clock);
  engine->Start();
  std::atomic<int> wrong = 0;
  std::vector<std::thread> clients;
  for (uint64_t i = 0; i < 12; ++i) {
    clients.emplace_back(RunClient, engine.get(), testing::RandomSeed() + i, 25, &wrong);
  }
  // Statistics are read all the time, as the front does.
  std::atomic<bool> over = false;
  std::thread reader([&] {
    while (!over) {
      if (engine->stats().running < 0) ++wrong;
      std::this_thread::yield();
    }
  });
  std::vector<std::shared_ptr<ThreadedWorkerGroup>> groups;
  for (uint64_t epoch = 1; epoch <= 5; ++epoch) {
    groups.push_back(std::make_shared<ThreadedWorkerGroup>(kCapacity, epoch, engine.get()));
    const StatusOr<uint64_t> joined = engine->Join(groups.back());
    REQUIRE(joined.ok());
    REQUIRE(*joined == epoch);
    if (epoch == 5) break;
    const uint64_t steps = engine->stats().steps;
    for (int i = 0; i < 1000 && engine->stats().steps < steps + 60; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    groups.back()->Die();
  }
  for (std::thread& client : clients) client.join();
  engine->StartDrain();
  while (!engine->Drained()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  over = true;
  reader.join();
  CHECK(wrong == 0);
  CHECK(engine->stats().free_blocks == engine->stats().total_blocks);
  engine->Stop();
  CHECK(!engine->stats().ready);
}

TEST_CASE("stopping from another thread releases everybody who waits") {
  spdlog::set_level(spdlog::level::off);
  const SteadyClock clock;
  const auto engine = MakeEngine({}, &clock);
  engine->Start();
  std::mt19937_64 random(testing::RandomSeed());
  std::vector<std::shared_ptr<BlockingSink>> sinks;  // no group ever joins
  for (int i = 0; i < 20; ++i) {
    sinks.push_back(std::make_shared<BlockingSink>());
    REQUIRE(engine->Submit(RandomRequest(engine.get(), &random), sinks.back()).ok());
  }
  std::thread stopper([&] { engine->Stop(); });
  for (const auto& sink : sinks) CHECK(sink->Wait().empty());
  stopper.join();
}

TEST_CASE("a deadline passes although nothing else happens") {
  const SteadyClock clock;
  const auto engine = MakeEngine({}, &clock);
  engine->Start();
  std::mt19937_64 random(testing::RandomSeed());
  Request request = RandomRequest(engine.get(), &random);
  request.deadline_us = clock.NowUs() + 20'000;
  const auto sink = std::make_shared<BlockingSink>();
  REQUIRE(engine->Submit(request, sink).ok());
  CHECK(sink->Wait().empty());
  CHECK(clock.NowUs() >= request.deadline_us);
}

}  // namespace hadal
