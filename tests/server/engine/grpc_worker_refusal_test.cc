// Who may join: the first message of a worker stream.

#include <spdlog/sinks/ostream_sink.h>

#include <algorithm>
#include <optional>
#include <sstream>

#include "proto/worker_protocol.h"
#include "tests/server/engine/raw_worker.h"
#include "tests/server/engine/worker_server.h"
#include "tests/support/catch.h"
#include "tests/support/mentions.h"

namespace hadal {
namespace {

using testing::MakeHello;
using testing::Mentions;
using testing::RawWorker;
using testing::WorkerServer;

// What the server answers to this first message.
grpc::Status Refusal(const WorkerServer& fixture, const std::string& first_message) {
  RawWorker worker(fixture.server.address());
  worker.Write(first_message);
  const std::optional<v1::ServerMessage> answer = worker.Read();
  CHECK(!answer.has_value());
  return worker.Finish();
}

template <typename Change>
grpc::Status Refusal(const WorkerServer& fixture, Change change) {
  v1::WorkerMessage hello = MakeHello();
  change(hello.mutable_hello());
  return Refusal(fixture, hello.SerializeAsString());
}

}  // namespace

TEST_CASE("the first message decides who may join") {
  WorkerServer fixture;
  SECTION("a wrong, a missing, a longer and a shorter secret") {
    for (const char* secret : {"open sesamf", "", "open sesame ", "open", "Open sesame"}) {
      const grpc::Status status =
          Refusal(fixture, [&](v1::Hello* hello) { hello->set_join_secret(secret); });
      CHECK(status.error_code() == grpc::PERMISSION_DENIED);
      CHECK(Mentions(status.error_message(), "--join-secret-file"));
      CHECK(!Mentions(status.error_message(), "sesame"));
    }
  }
  SECTION("another model") {
    const grpc::Status status =
        Refusal(fixture, [](v1::Hello* hello) { hello->set_fingerprint("model-2\n\x01"); });
    CHECK(status.error_code() == grpc::FAILED_PRECONDITION);
    CHECK(Mentions(status.error_message(), "different model directories"));
    CHECK(Mentions(status.error_message(), "model-2??"));
  }
  SECTION("another version of the protocol") {
    const grpc::Status status = Refusal(
        fixture, [](v1::Hello* hello) { hello->set_protocol_version(kWorkerProtocolVersion + 1); });
    CHECK(status.error_code() == grpc::FAILED_PRECONDITION);
    CHECK(Mentions(status.error_message(), "one build"));
  }
  SECTION("no Hello, or bytes that are no message") {
    v1::WorkerMessage failure;
    failure.set_failure("too early");
    for (const std::string& bytes : {std::string(), failure.SerializeAsString(),
                                     std::string("\x0a\x7fgarbage"), std::string(300, '\xff')}) {
      const grpc::Status status = Refusal(fixture, bytes);
      CHECK(status.error_code() == grpc::INVALID_ARGUMENT);
      CHECK(Mentions(status.error_message(), "must begin with hello"));
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
  REQUIRE(worker.Write(MakeHello()));
  CHECK(worker.Read().has_value());
  CHECK(fixture.engine.WaitForLosses(0).empty());
}

TEST_CASE("a group that asks again and again is logged once for each reason") {
  WorkerServer fixture;
  std::ostringstream log;
  const auto previous = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  spdlog::set_level(spdlog::level::warn);
  const auto lines = [&] {
    const std::string text = log.str();
    return std::count(text.begin(), text.end(), '\n');
  };
  // A channel that lives on keeps the connection, so that the server sees one peer.
  const auto channel =
      grpc::CreateChannel(fixture.server.address(), grpc::InsecureChannelCredentials());
  REQUIRE(channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(20)));
  fixture.engine.Refuse({StatusCode::kAborted, "another is joined"});
  for (int i = 0; i < 3; ++i) Refusal(fixture, [](v1::Hello*) {});
  CHECK(lines() == 1);
  for (int i = 0; i < 3; ++i) {
    Refusal(fixture, [](v1::Hello* hello) { hello->set_join_secret("x"); });
  }
  CHECK(lines() == 2);
  CHECK(Mentions(log.str(), "another is joined"));
  spdlog::set_default_logger(previous);
}

TEST_CASE("capacities that cannot be are refused by name") {
  WorkerServer fixture;
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

TEST_CASE("compressed messages are refused before they are inflated") {
  WorkerServer fixture;
  for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    RawWorker worker(fixture.server.address(), algorithm);
    v1::WorkerMessage hello = MakeHello();
    hello.mutable_hello()->set_host(std::string(10'000, 'a'));
    worker.Write(hello);
    CHECK(worker.Finish().error_code() == grpc::UNIMPLEMENTED);
  }
  CHECK(fixture.engine.WaitForLosses(0).empty());
}

TEST_CASE("a stream that is closed before Hello is no group") {
  WorkerServer fixture;
  {
    RawWorker worker(fixture.server.address());
    worker.HalfClose();
    CHECK(worker.Finish().error_code() == grpc::INVALID_ARGUMENT);
  }
  RawWorker(fixture.server.address()).Cancel();
  RawWorker worker(fixture.server.address());
  REQUIRE(worker.Write(MakeHello()));
  CHECK(worker.Read()->welcome().epoch() == 1);
  CHECK(fixture.engine.WaitForLosses(0).empty());
}

TEST_CASE("a server without secret and fingerprint asks for none") {
  WorkerServer fixture({.fingerprint = "", .vocab_limit = 7, .join_secret = ""});
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    v1::WorkerMessage hello = MakeHello();
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
  WorkerServer fixture;
  auto first = std::make_unique<RawWorker>(fixture.server.address());
  REQUIRE(first->Write(MakeHello()));
  REQUIRE(first->Read().has_value());
  const grpc::Status status = Refusal(fixture, [](v1::Hello*) {});
  CHECK(status.error_code() == grpc::ABORTED);
  CHECK(Mentions(status.error_message(), "joined already"));
  CHECK(fixture.engine.WaitForLosses(0).empty());

  first.reset();
  REQUIRE(fixture.engine.WaitForLosses(1).size() == 1);
  RawWorker second(fixture.server.address());
  REQUIRE(second.Write(MakeHello()));
  const auto welcome = second.Read();
  REQUIRE(welcome.has_value());
  CHECK(welcome->welcome().epoch() == 2);
}

}  // namespace hadal
