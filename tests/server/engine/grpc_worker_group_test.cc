// The server's end of the worker stream, against a worker that sends whatever it likes.

#include "server/engine/grpc_worker_group.h"

#include <optional>

#include "proto/step_plan_codec.h"
#include "tests/server/engine/random_plan.h"
#include "tests/server/engine/raw_worker.h"
#include "tests/server/engine/worker_server.h"
#include "tests/support/catch.h"
#include "tests/support/mentions.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::MakeHello;
using testing::Mentions;
using testing::RandomPlans;
using testing::RawWorker;
using testing::WorkerServer;

v1::WorkerMessage ResultMessage(const StepResult& result) {
  v1::WorkerMessage message;
  message.set_result(EncodeStepResult(result));
  return message;
}

StatusOr<StepPlan> Decode(const v1::ServerMessage& message) {
  const std::string& bytes = message.plan();
  return DecodeStepPlan({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
}

}  // namespace

TEST_CASE("a group joins, is welcomed, gets plans and answers them") {
  WorkerServer fixture;
  RawWorker worker(fixture.server.address());
  REQUIRE(worker.Write(MakeHello()));
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

TEST_CASE("what a joined worker may not send ends its group") {
  WorkerServer fixture;
  RandomPlans random(testing::RandomSeed());
  v1::WorkerMessage garbage;
  garbage.set_result(std::string("\x1a\x7f\x01", 3));
  const std::string messages[] = {garbage.SerializeAsString(), MakeHello().SerializeAsString(),
                                  std::string(),
                                  ResultMessage(random.Result(99, 1)).SerializeAsString()};
  size_t losses = 0;
  for (const std::string& message : messages) {
    RawWorker worker(fixture.server.address());
    REQUIRE(worker.Write(MakeHello()));
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
  WorkerServer fixture;
  RawWorker worker(fixture.server.address());
  REQUIRE(worker.Write(MakeHello()));
  REQUIRE(worker.Read().has_value());
  worker.Write(std::string(50, '\xff'));
  CHECK(!worker.Read().has_value());
  CHECK(!worker.Finish().ok());
  CHECK(fixture.engine.WaitForLosses(1).size() == 1);
}

TEST_CASE("a failure is the reason of the loss") {
  WorkerServer fixture;
  RawWorker worker(fixture.server.address());
  REQUIRE(worker.Write(MakeHello()));
  REQUIRE(worker.Read().has_value());
  v1::WorkerMessage failure;
  failure.set_failure("rank 3 on host-b: out of memory");
  REQUIRE(worker.Write(failure));
  CHECK(!worker.Read().has_value());
  CHECK(Mentions(worker.Finish().error_message(), "rank 3 on host-b: out of memory"));
  const auto losses = fixture.engine.WaitForLosses(1);
  REQUIRE(losses.size() == 1);
  CHECK(losses[0].second.message().find("rank 3 on host-b: out of memory") != std::string::npos);
}

TEST_CASE("a closed group learns why, and is not reported as lost") {
  WorkerServer fixture;
  RawWorker worker(fixture.server.address());
  REQUIRE(worker.Write(MakeHello()));
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
  REQUIRE(next.Write(MakeHello()));
  REQUIRE(next.Read().has_value());
  CHECK(fixture.engine.WaitForLosses(0).empty());
  CHECK(fixture.engine.WaitForResults(0).empty());
}

TEST_CASE("the engine may use a group long after its stream") {
  std::shared_ptr<WorkerGroup> group;
  RandomPlans random(testing::RandomSeed());
  {
    WorkerServer fixture;
    {
      RawWorker worker(fixture.server.address());
      REQUIRE(worker.Write(MakeHello()));
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
