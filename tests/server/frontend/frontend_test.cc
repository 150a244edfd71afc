// The public services over real connections, with the shipped engine and workers that count: the
// token at position p is p modulo 97.

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "hadal/v1/generate.grpc.pb.h"
#include "hadal/v1/tokenizer.grpc.pb.h"
#include "server/frontend/services.h"
#include "tests/server/frontend/test_model.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

constexpr int kModulus = 97;
constexpr auto kPatience = std::chrono::seconds(60);

// Answers plans at once: the engine only queues a result that it is handed.
class CountingWorkers final : public WorkerGroup {
 public:
  explicit CountingWorkers(Engine* engine) : engine_(engine) {}

  const GroupCapacity& capacity() const override { return capacity_; }
  void Close(const Status&) override {}
  void Submit(const StepPlan& plan) override {
    StepResult result{.epoch = plan.epoch, .step = plan.step, .groups = {1, GroupResult{}}};
    for (const SlotEnter& enter : plan.groups[0].enters) logprobs_[enter.slot] = enter.sampling.logprobs;
    for (const PlanRow& row : plan.groups[0].rows) {
      if (!row.sample) continue;
      SampleResult sample{.slot = row.slot, .token = (row.start_pos + row.num_tokens) % kModulus};
      sample.logprob = -0.5f;
      for (int i = 0; i < logprobs_[row.slot]; ++i) sample.top.push_back({i, -0.1f * static_cast<float>(i)});
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
  explicit Front(bool with_workers = true, const EngineOptions& options = {})
      : engine(MakeEngine(options, &clock)) {
    spdlog::set_level(spdlog::level::off);
    engine->Start();
    if (with_workers) CHECK(engine->Join(std::make_shared<CountingWorkers>(engine.get())).ok());
    grpc::ServerBuilder builder;
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
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // 64 KiB in flight, whatever the link could hold
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
    return Await([](const EngineStats& s) { return s.running == 0 && s.free_blocks == s.total_blocks; });
  }

  SteadyClock clock;
  std::unique_ptr<ServedModel> model = testing::MakeServedModel(1 << 20);
  std::unique_ptr<Engine> engine;
  Intake intake{model.get(), engine.get(), &clock};
  std::vector<std::unique_ptr<grpc::Service>> services = [this] {
    std::vector<std::unique_ptr<grpc::Service>> all;
    all.push_back(MakeGenerateService(&intake));
    all.push_back(MakeTokenizerService(&intake));
    return all;
  }();
  int port = 0;
  std::unique_ptr<grpc::Server> server;
};

v1::GenerateRequest MakeRequest(int prompt_tokens, int max_tokens) {
  v1::GenerateRequest request;
  for (int i = 0; i < prompt_tokens; ++i) request.mutable_token_ids()->add_ids(i % kModulus);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_output()->set_return_token_ids(true);
  return request;
}

std::vector<int32_t> Counted(int prompt_tokens, int count) {
  std::vector<int32_t> tokens(count);
  for (int i = 0; i < count; ++i) tokens[i] = (prompt_tokens + i) % kModulus;
  return tokens;
}

std::string Text(const std::vector<int32_t>& tokens) { return {tokens.begin(), tokens.end()}; }

// The events of a stream, and its end.
struct Stream {
  std::vector<v1::Event> events;
  grpc::Status status;
  std::vector<int32_t> tokens;
  std::string text;
};

Stream Read(grpc::ClientReader<v1::Event>* reader) {
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

Stream Generate(const std::shared_ptr<grpc::Channel>& channel, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  return Read(v1::GenerateService::NewStub(channel)->Generate(&context, request).get());
}

}  // namespace

TEST_CASE("a stream is accepted, has deltas, a reason and a summary; once is its sum") {
  const Front front;
  const auto channel = front.Connect();
  for (const auto& [prompt, count] : {std::pair(5, 40), {600, 3}, {1, 1}, {70, 200}}) {
    CAPTURE(prompt, count);
    const v1::GenerateRequest request = MakeRequest(prompt, count);
    const Stream stream = Generate(channel, request);
    REQUIRE(stream.status.ok());
    REQUIRE(stream.events.size() >= 4);
    CHECK(stream.events.front().accepted().prompt_tokens() == prompt);
    CHECK(stream.events.front().accepted().prompt_token_ids_size() == prompt);
    CHECK(stream.events.rbegin()[1].finished().reason() == v1::FINISH_REASON_LENGTH);
    CHECK_FALSE(stream.events.rbegin()[1].finished().has_stop());
    const v1::Summary& summary = stream.events.back().summary();
    CHECK(summary.usage().prompt_tokens() == prompt);
    CHECK(summary.usage().completion_tokens() == count);
    for (size_t i = 1; i + 2 < stream.events.size(); ++i) CHECK(stream.events[i].has_delta());
    CHECK(stream.tokens == Counted(prompt, count));
    CHECK(stream.text == Text(stream.tokens));

    grpc::ClientContext context;
    v1::Completion once;
    REQUIRE(v1::GenerateService::NewStub(channel)->GenerateOnce(&context, request, &once).ok());
    CHECK(std::equal(stream.tokens.begin(), stream.tokens.end(), once.output().token_ids().begin(),
                     once.output().token_ids().end()));
    CHECK(once.output().text() == stream.text);
    CHECK(once.finished().reason() == v1::FINISH_REASON_LENGTH);
  }
  CHECK(front.AwaitIdle());
}

TEST_CASE("a client that does not read loses its stream, and no other does") {
  const Front front;
  v1::GenerateRequest request = MakeRequest(10, 100'000);
  request.mutable_output()->set_logprobs(20);
  grpc::ClientContext context;
  const auto stub = v1::GenerateService::NewStub(front.Connect());
  const auto slow = stub->Generate(&context, request);
  // Its blocks are free although it has not read a word.
  REQUIRE(front.Await([](const EngineStats& s) { return s.generated_tokens > 0; }));
  REQUIRE(front.AwaitIdle());
  const Stream other = Generate(front.Connect(), MakeRequest(10, 2000));
  CHECK(other.status.ok());
  CHECK(other.tokens == Counted(10, 2000));
  const Stream stream = Read(slow.get());
  CHECK(stream.status.error_code() == grpc::RESOURCE_EXHAUSTED);
  CHECK(stream.status.error_message().find("does not read") != std::string::npos);
  CHECK(stream.tokens.size() < 100'000);
  CHECK(stream.tokens == Counted(10, static_cast<int>(stream.tokens.size())));
}

TEST_CASE("a client that reads late but in time gets everything") {
  const Front front;
  grpc::ClientContext context;
  const auto stub = v1::GenerateService::NewStub(front.Connect());
  const auto reader = stub->Generate(&context, MakeRequest(10, 50'000));  // fits the buffer
  REQUIRE(front.Await([](const EngineStats& s) { return s.generated_tokens >= 50'000; }));
  const Stream stream = Read(reader.get());
  CHECK(stream.status.ok());
  CHECK(stream.tokens == Counted(10, 50'000));
}

TEST_CASE("a cancelled call frees its blocks") {
  const Front front;
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    const auto stub = v1::GenerateService::NewStub(front.Connect());
    const auto reader = stub->Generate(&context, MakeRequest(100, 200'000));
    v1::Event event;
    for (int reads = 0; reads < i; ++reads) REQUIRE(reader->Read(&event));
    context.TryCancel();
    CHECK(Read(reader.get()).status.error_code() == grpc::CANCELLED);
    CHECK(front.AwaitIdle());
  }
}

TEST_CASE("without workers requests wait up to their deadlines, in a bounded queue") {
  const Front front(/*with_workers=*/false, {.max_waiting_requests = 2});
  const auto channel = front.Connect();
  const auto stub = v1::GenerateService::NewStub(channel);
  grpc::ClientContext contexts[2];
  std::vector<std::unique_ptr<grpc::ClientReader<v1::Event>>> waiting;
  for (grpc::ClientContext& context : contexts) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(1));
    waiting.push_back(stub->Generate(&context, MakeRequest(3, 3)));
  }
  REQUIRE(front.Await([](const EngineStats& s) { return s.waiting == 2; }));
  CHECK(Generate(channel, MakeRequest(3, 3)).status.error_code() == grpc::RESOURCE_EXHAUSTED);
  for (const auto& reader : waiting) {
    CHECK(Read(reader.get()).status.error_code() == grpc::DEADLINE_EXCEEDED);
  }
  CHECK(front.Await([](const EngineStats& s) { return s.waiting == 0; }));
}

TEST_CASE("stop strings end the text before them, also across tokens") {
  const Front front;
  v1::GenerateRequest request = MakeRequest(40, 50);  // "()*+,-./0123..." from position 40 on
  request.mutable_sampling()->add_stop("/01");
  const Stream stream = Generate(front.Connect(), request);
  REQUIRE(stream.status.ok());
  CHECK(stream.text == "()*+,-.");
  CHECK(stream.events.rbegin()[1].finished().stop() == "/01");
  CHECK_FALSE(stream.events.rbegin()[1].finished().has_stop_token_id());
  CHECK(stream.events.rbegin()[1].finished().reason() == v1::FINISH_REASON_STOP);
  CHECK(front.AwaitIdle());
}

TEST_CASE("bytes that are no UTF-8 are refused with the field's name") {
  const Front front;
  v1::GenerateRequest request;
  request.set_text("x");
  std::string bytes = request.SerializeAsString();
  bytes.back() = '\xff';
  const grpc::Slice slice(bytes);
  grpc::ByteBuffer answer;
  grpc::Status status;
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  grpc::GenericStub stub(front.Connect());
  const auto call = stub.PrepareUnaryCall(&context, "/hadal.v1.GenerateService/GenerateOnce",
                                          grpc::ByteBuffer(&slice, 1), &queue);
  call->StartCall();
  call->Finish(&answer, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  REQUIRE(queue.Next(&tag, &ok));
  CHECK(status.error_code() == grpc::INVALID_ARGUMENT);
  CHECK(status.error_message().find("text") != std::string::npos);
}

TEST_CASE("the tokenizer is served") {
  const Front front;
  const auto stub = v1::TokenizerService::NewStub(front.Connect());
  grpc::ClientContext encode_context, decode_context;
  v1::EncodeRequest encode;
  encode.set_text("h\xC3\xA9 <|im_end|>");
  v1::EncodeResponse ids;
  REQUIRE(stub->Encode(&encode_context, encode, &ids).ok());
  v1::DecodeRequest decode;
  *decode.mutable_token_ids() = ids.token_ids();
  for (const int32_t id : ids.token_ids()) CHECK(id < 256);  // the user's control token is text
  v1::DecodeResponse text;
  REQUIRE(stub->Decode(&decode_context, decode, &text).ok());
  CHECK(text.text() == encode.text());
}

}  // namespace hadal
