// The server's end of the worker stream, against a worker that sends whatever it likes.

#include "server/engine/grpc_worker_group.h"

#include <spdlog/spdlog.h>

#include <optional>

#include "proto/step_plan_codec.h"
#include "proto/worker_protocol.h"
#include "tests/server/engine/random_plan.h"
#include "tests/server/engine/raw_worker.h"
#include "tests/server/engine/worker_server.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::RandomPlans;
using testing::RawWorker;
using testing::RecordingEngine;
using testing::TestServer;

const WorkerServiceOptions kOptions{
    .fingerprint = "model-1", .vocab_limit = 1234, .join_secret = "open sesame"};

struct Fixture {
  explicit Fixture(const WorkerServiceOptions& options = kOptions)
      : server(MakeWorkerService(options, &engine)) {
    spdlog::set_level(spdlog::level::off);
  }
  RecordingEngine engine;
  TestServer server;
};

v1::WorkerMessage Hello() {
  v1::WorkerMessage message;
  v1::Hello* hello = message.mutable_hello();
  hello->set_protocol_version(kWorkerProtocolVersion);
  hello->set_fingerprint("model-1");
  hello->set_tensor_parallel(2);
  hello->set_data_parallel(3);
  hello->set_kv_blocks(40);
  hello->set_max_slots(5);
  hello->set_max_step_tokens(600);
  hello->set_join_secret("open sesame");
  hello->set_host("host-a");
  return message;
}

v1::WorkerMessage ResultMessage(const StepResult& result) {
  v1::WorkerMessage message;
  message.set_result(EncodeStepResult(result));
  return message;
}

StatusOr<StepPlan> Decode(const v1::ServerMessage& message) {
  const std::string& bytes = message.plan();
  return DecodeStepPlan({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
}

// What the server answers to this first message.
grpc::Status Refusal(const Fixture& fixture, const std::string& first_message) {
  RawWorker worker(fixture.server.address());
  worker.Write(first_message);
  const std::optional<v1::ServerMessage> answer = worker.Read();
  CHECK(!answer.has_value());
  return worker.Finish();
}

template <typename Change>
grpc::Status Refusal(const Fixture& fixture, Change change) {
  v1::WorkerMessage hello = Hello();
  change(hello.mutable_hello());
  return Refusal(fixture, hello.SerializeAsString());
}

bool Contains(const grpc::Status& status, const std::string& text) {
  return status.error_message().find(text) != std::string::npos;
}

}  // namespace

TEST_CASE("a group joins, is welcomed, gets plans and answers them") {
  Fixture fixture;
  RawWorker worker(fixture.server.address());
  REQUIRE(worker.Write(Hello()));
  const auto welcome = worker.Read();
  REQUIRE(welcome.has_value());
  REQUIRE(welcome->has_welcome());
  CHECK(welcome->welcome().epoch() == 1);
  CHECK(welcome->welcome().vocab_limit() == 1234);

  const auto group = fixture.engine.WaitForGroup();
  REQUIRE(group != nullptr);
  CHECK(group->capacity() == GroupCapacity{.fingerprint = "model-1",
                                           .tensor_parallel = 2,
                                           .data_parallel = 3,
                                           .kv_blocks = 40,
                                           .max_slots = 5,
                                           .max_step_tokens = 600});
  RandomPlans random(testing::RandomSeed());
  std::vector<StepPlan> plans = {random.Plan(1, 1), random.Plan(1, 2)};
  for (const StepPlan& plan : plans) group->Submit(plan);  // two in flight
  for (const StepPlan& plan : plans) {
    const auto message = worker.Read();
    REQUIRE(message.has_value());
    const StatusOr<StepPlan> received = Decode(*message);
    REQUIRE(received.ok());
    CHECK(*received == plan);
  }
  const StepResult result = random.Result(1, 1);
  REQUIRE(worker.Write(ResultMessage(result)));
  const std::vector<StepResult> results = fixture.engine.WaitForResults(1);
  REQUIRE(results.size() == 1);
  CHECK(results[0] == result);
}

TEST_CASE("the first message decides who may join") {
  Fixture fixture;
  SECTION("a wrong, a missing, a longer and a shorter secret") {
    for (const char* secret : {"open sesamf", "", "open sesame ", "open", "Open sesame"}) {
      const grpc::Status status =
          Refusal(fixture, [&](v1::Hello* hello) { hello->set_join_secret(secret); });
      CHECK(status.error_code() == grpc::PERMISSION_DENIED);
      CHECK(Contains(status, "--join-secret-file"));
      CHECK(!Contains(status, "sesame"));
    }
  }
  SECTION("another model") {
    const grpc::Status status =
        Refusal(fixture, [](v1::Hello* hello) { hello->set_fingerprint("model-2\n\x01"); });
    CHECK(status.error_code() == grpc::FAILED_PRECONDITION);
    CHECK(Contains(status, "different model directories"));
    CHECK(Contains(status, "model-2??"));
  }
  SECTION("another version of the protocol") {
    const grpc::Status status = Refusal(
        fixture, [](v1::Hello* hello) { hello->set_protocol_version(kWorkerProtocolVersion + 1); });
    CHECK(status.error_code() == grpc::FAILED_PRECONDITION);
    CHECK(Contains(status, "one build"));
  }
  SECTION("capacities that cannot be") {
    using Setter = void (v1::Hello::*)(int32_t);
    const std::pair<Setter, const char*> fields[] = {
        {&v1::Hello::set_tensor_parallel, "tensor_parallel"},
        {&v1::Hello::set_data_parallel, "data_parallel"},
        {&v1::Hello::set_kv_blocks, "kv_blocks"},
        {&v1::Hello::set_max_slots, "max_slots"},
        {&v1::Hello::set_max_step_tokens, "max_step_tokens"}};
    for (const auto& [set, name] : fields) {
      for (const int32_t value : {0, -1, INT32_MIN, INT32_MAX}) {
        const grpc::Status status =
            Refusal(fixture, [&, set = set](v1::Hello* hello) { (hello->*set)(value); });
        CHECK(status.error_code() == grpc::INVALID_ARGUMENT);
        CHECK(status.error_message().rfind(std::string(name) + ": ", 0) == 0);
      }
    }
  }
  SECTION("no Hello, or bytes that are no message") {
    v1::WorkerMessage failure;
    failure.set_failure("too early");
    for (const std::string& bytes : {std::string(), failure.SerializeAsString(),
                                     std::string("\x0a\x7fgarbage"), std::string(300, '\xff')}) {
      const grpc::Status status = Refusal(fixture, bytes);
      CHECK(status.error_code() == grpc::INVALID_ARGUMENT);
      CHECK(Contains(status, "must begin with hello"));
    }
  }
  SECTION("the engine shuts down") {
    fixture.engine.Refuse(Unavailable("the server is shutting down"));
    const grpc::Status status = Refusal(fixture, [](v1::Hello*) {});
    CHECK(status.error_code() == grpc::UNAVAILABLE);
    CHECK(status.error_message() == "the server is shutting down");
  }
  // None of them kept the next one out.
  fixture.engine.Refuse(OkStatus());
  RawWorker worker(fixture.server.address());
  REQUIRE(worker.Write(Hello()));
  CHECK(worker.Read().has_value());
  CHECK(fixture.engine.WaitForLosses(0).empty());
}

TEST_CASE("a stream that is closed before Hello is no group") {
  Fixture fixture;
  {
    RawWorker worker(fixture.server.address());
    worker.HalfClose();
    CHECK(worker.Finish().error_code() == grpc::INVALID_ARGUMENT);
  }
  RawWorker(fixture.server.address()).Cancel();
  RawWorker worker(fixture.server.address());
  REQUIRE(worker.Write(Hello()));
  CHECK(worker.Read()->welcome().epoch() == 1);
  CHECK(fixture.engine.WaitForLosses(0).empty());
}

TEST_CASE("a server without secret and fingerprint asks for none") {
  Fixture fixture({.fingerprint = "", .vocab_limit = 7, .join_secret = ""});
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    v1::WorkerMessage hello = Hello();
    hello.mutable_hello()->set_join_secret(std::string(epoch - 1, '\xff'));
    hello.mutable_hello()->set_fingerprint("model " + std::to_string(epoch));
    RawWorker worker(fixture.server.address());
    REQUIRE(worker.Write(hello));
    REQUIRE(worker.Read().has_value());
    worker.Cancel();
    REQUIRE(fixture.engine.WaitForLosses(epoch).size() == epoch);
  }
}

TEST_CASE("a second group is told to try again, and may once the first has left") {
  Fixture fixture;
  auto first = std::make_unique<RawWorker>(fixture.server.address());
  REQUIRE(first->Write(Hello()));
  REQUIRE(first->Read().has_value());
  const grpc::Status status = Refusal(fixture, [](v1::Hello*) {});
  CHECK(status.error_code() == grpc::ABORTED);
  CHECK(Contains(status, "joined already"));
  CHECK(fixture.engine.WaitForLosses(0).empty());

  first.reset();
  REQUIRE(fixture.engine.WaitForLosses(1).size() == 1);
  RawWorker second(fixture.server.address());
  REQUIRE(second.Write(Hello()));
  const auto welcome = second.Read();
  REQUIRE(welcome.has_value());
  CHECK(welcome->welcome().epoch() == 2);
}

TEST_CASE("what a joined worker may not send ends its group") {
  Fixture fixture;
  RandomPlans random(testing::RandomSeed());
  v1::WorkerMessage garbage;
  garbage.set_result(std::string("\x1a\x7f\x01", 3));
  const std::string messages[] = {garbage.SerializeAsString(), Hello().SerializeAsString(),
                                  std::string(),
                                  ResultMessage(random.Result(99, 1)).SerializeAsString()};
  size_t losses = 0;
  for (const std::string& message : messages) {
    RawWorker worker(fixture.server.address());
    REQUIRE(worker.Write(Hello()));
    REQUIRE(worker.Read().has_value());
    worker.Write(message);
    CHECK(!worker.Read().has_value());
    CHECK(worker.Finish().error_code() == grpc::INVALID_ARGUMENT);
    const auto lost = fixture.engine.WaitForLosses(++losses);
    REQUIRE(lost.size() == losses);
    CHECK(lost.back().first == losses);
    CHECK(lost.back().second.code() == StatusCode::kInvalidArgument);
  }
  CHECK(fixture.engine.WaitForResults(0).empty());
}

TEST_CASE("bytes that are no message end the group") {
  Fixture fixture;
  RawWorker worker(fixture.server.address());
  REQUIRE(worker.Write(Hello()));
  REQUIRE(worker.Read().has_value());
  worker.Write(std::string(50, '\xff'));
  CHECK(!worker.Read().has_value());
  CHECK(!worker.Finish().ok());
  CHECK(fixture.engine.WaitForLosses(1).size() == 1);
}

TEST_CASE("a failure is the reason of the loss") {
  Fixture fixture;
  RawWorker worker(fixture.server.address());
  REQUIRE(worker.Write(Hello()));
  REQUIRE(worker.Read().has_value());
  v1::WorkerMessage failure;
  failure.set_failure("rank 3 on host-b: out of memory");
  REQUIRE(worker.Write(failure));
  CHECK(!worker.Read().has_value());
  CHECK(Contains(worker.Finish(), "rank 3 on host-b: out of memory"));
  const auto losses = fixture.engine.WaitForLosses(1);
  REQUIRE(losses.size() == 1);
  CHECK(losses[0].second.message().find("rank 3 on host-b: out of memory") != std::string::npos);
}

TEST_CASE("a closed group learns why, and is not reported as lost") {
  Fixture fixture;
  RawWorker worker(fixture.server.address());
  REQUIRE(worker.Write(Hello()));
  REQUIRE(worker.Read().has_value());
  const auto group = fixture.engine.WaitForGroup();
  REQUIRE(group != nullptr);
  // Longer than a header can be.
  group->Close(Status(StatusCode::kDeadlineExceeded, "too slow" + std::string(100'000, '\n')));
  fixture.engine.Forget();
  RandomPlans random(testing::RandomSeed());
  worker.Write(ResultMessage(random.Result(1, 1)));
  group->Submit(random.Plan(1, 1));  // into the void
  group->Close(Unavailable("again"));
  CHECK(!worker.Read().has_value());
  const grpc::Status status = worker.Finish();
  CHECK(status.error_code() == grpc::DEADLINE_EXCEEDED);
  CHECK(status.error_message().rfind("too slow", 0) == 0);

  // Another round trip of the whole path: by then a report would have arrived.
  RawWorker next(fixture.server.address());
  REQUIRE(next.Write(Hello()));
  REQUIRE(next.Read().has_value());
  CHECK(fixture.engine.WaitForLosses(0).empty());
  CHECK(fixture.engine.WaitForResults(0).empty());
}

TEST_CASE("the engine may use a group long after its stream") {
  std::shared_ptr<WorkerGroup> group;
  RandomPlans random(testing::RandomSeed());
  {
    Fixture fixture;
    {
      RawWorker worker(fixture.server.address());
      REQUIRE(worker.Write(Hello()));
      REQUIRE(worker.Read().has_value());
      group = fixture.engine.WaitForGroup();
      REQUIRE(group != nullptr);
      for (uint64_t step = 1; step <= 2; ++step) group->Submit(random.Plan(1, step));
    }
    REQUIRE(fixture.engine.WaitForLosses(1).size() == 1);
    group->Submit(random.Plan(1, 3));
  }
  group->Submit(random.Plan(1, 4));
  CHECK(group->capacity().kv_blocks == 40);
  group->Close(Unavailable("late"));
}

}  // namespace hadal
