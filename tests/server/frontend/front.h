// The public services over real connections, with the shipped engine and workers that count: the
// token at position p is p modulo 97.
#pragma once

#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "hadal/v1/generate.grpc.pb.h"
#include "server/frontend/services.h"
#include "tests/server/frontend/test_model.h"
#include "tests/support/catch.h"

namespace hadal::testing {

inline constexpr int kModulus = 97;
inline constexpr auto kPatience = std::chrono::seconds(60);

// Answers plans at once: the engine only queues a result that it is handed.
class CountingWorkers final : public WorkerGroup {
 public:
  explicit CountingWorkers(Engine* engine) : engine_(engine) {}

  const GroupCapacity& capacity() const override { return capacity_; }
  void Close(const Status&) override {}
  void Submit(const StepPlan& plan) override {
    StepResult result{.epoch = plan.epoch, .step = plan.step, .groups = {1, GroupResult{}}};
    for (const SlotEnter& enter : plan.groups[0].enters)
      logprobs_[enter.slot] = enter.sampling.logprobs;
    for (const PlanRow& row : plan.groups[0].rows) {
      if (!row.sample) continue;
      SampleResult sample{.slot = row.slot, .token = (row.start_pos + row.num_tokens) % kModulus};
      sample.logprob = -0.5f;
      for (int i = 0; i < logprobs_[row.slot]; ++i)
        sample.top.push_back({i, -0.1f * static_cast<float>(i)});
      result.groups[0].samples.push_back(std::move(sample));
    }
    result.step_us = 10;
    engine_->OnResult(std::move(result));
  }

 private:
  Engine* const engine_;
  const GroupCapacity capacity_{
      .fingerprint = "toy", .kv_blocks = 4000, .max_slots = 16, .max_step_tokens = 512};
  int32_t logprobs_[16] = {};
};

struct Front {
  explicit Front(bool with_workers = true, const EngineOptions& options = {},
                 const IntakeLimits& limits = {},
                 std::unique_ptr<ServedModel> served = MakeServedModel(1 << 20))
      : model(std::move(served)),
        engine(MakeEngine(options, &clock)),
        intake(model.get(), engine.get(), &clock, limits) {
    spdlog::set_level(spdlog::level::off);
    engine->Start();
    if (with_workers) CHECK(engine->Join(std::make_shared<CountingWorkers>(engine.get())).ok());
    grpc::ServerBuilder builder;
    ConfigurePublicServer(&builder);
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    for (const auto& service : services) builder.RegisterService(service.get());
    server = builder.BuildAndStart();
  }
  ~Front() {
    engine->Stop();
    intake.Stop();
    server->Shutdown(std::chrono::system_clock::now());
  }

  std::shared_ptr<grpc::Channel> Connect() const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE,
                     0);  // 64 KiB in flight, whatever the link could hold
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port),
                                     grpc::InsecureChannelCredentials(), arguments);
  }
  // Whether it came to be within kPatience.
  template <typename Condition>
  bool Await(const Condition& condition) const {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (!condition(engine->stats())) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }
  bool AwaitIdle() const {
    return Await(
        [](const EngineStats& s) { return s.running == 0 && s.free_blocks == s.total_blocks; });
  }

  SteadyClock clock;
  const std::unique_ptr<ServedModel> model;
  std::unique_ptr<Engine> engine;
  Intake intake;
  std::vector<std::unique_ptr<grpc::Service>> services = [this] {
    std::vector<std::unique_ptr<grpc::Service>> all;
    all.push_back(MakeGenerateService(&intake));
    all.push_back(MakeTokenizerService(&intake));
    return all;
  }();
  int port = 0;
  std::unique_ptr<grpc::Server> server;
};

inline v1::GenerateRequest MakeRequest(int prompt_tokens, int max_tokens) {
  v1::GenerateRequest request;
  for (int i = 0; i < prompt_tokens; ++i) request.mutable_token_ids()->add_ids(i % kModulus);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_output()->set_return_token_ids(true);
  return request;
}

inline std::vector<int32_t> Counted(int prompt_tokens, int count) {
  std::vector<int32_t> tokens(count);
  for (int i = 0; i < count; ++i) tokens[i] = (prompt_tokens + i) % kModulus;
  return tokens;
}

inline std::string Text(const std::vector<int32_t>& tokens) {
  return {tokens.begin(), tokens.end()};
}

// The events of a stream, and its end.
struct Stream {
  std::vector<v1::Event> events;
  grpc::Status status;
  std::vector<int32_t> tokens;
  std::string text;
};

inline Stream Read(grpc::ClientReader<v1::Event>* reader) {
  Stream stream;
  v1::Event event;
  while (reader->Read(&event)) {
    const auto& ids = event.delta().token_ids();
    stream.tokens.insert(stream.tokens.end(), ids.begin(), ids.end());
    stream.text += event.delta().text();
    stream.events.push_back(event);
  }
  stream.status = reader->Finish();
  return stream;
}

inline Stream Generate(const std::shared_ptr<grpc::Channel>& channel,
                       const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  return Read(v1::GenerateService::NewStub(channel)->Generate(&context, request).get());
}

}  // namespace hadal::testing
