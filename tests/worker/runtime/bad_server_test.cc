// What the plan channel makes of servers that do not behave.

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>

#include <functional>
#include <memory>

#include "hadal/v1/model.grpc.pb.h"
#include "hadal/v1/worker.grpc.pb.h"
#include "tests/server/engine/worker_server.h"
#include "tests/support/catch.h"
#include "worker/runtime/plan_channel.h"

namespace hadal {
namespace {

using testing::TestServer;
using Stream = grpc::ServerReaderWriter<v1::ServerMessage, v1::WorkerMessage>;

const GroupCapacity kSmallest{
    .fingerprint = "model", .kv_blocks = 1, .max_slots = 1, .max_step_tokens = 1};

// Answers the calls with these, one after the other.
class ScriptedService final : public v1::WorkerService::Service {
 public:
  using Script = std::function<grpc::Status(Stream*)>;
  explicit ScriptedService(std::vector<Script> scripts) : scripts_(std::move(scripts)) {}

  grpc::Status Join(grpc::ServerContext*, Stream* stream) override {
    v1::WorkerMessage hello;
    if (!stream->Read(&hello) || !hello.has_hello()) return grpc::Status::CANCELLED;
    return scripts_.at(next_++)(stream);
  }

 private:
  const std::vector<Script> scripts_;
  size_t next_ = 0;
};

grpc::Status Welcome(Stream* stream) {
  v1::ServerMessage message;
  message.mutable_welcome()->set_epoch(5);
  stream->Write(message);
  return grpc::Status::OK;
}

grpc::Status SendPlan(Stream* stream) {
  v1::ServerMessage message;
  message.set_plan("plan");
  stream->Write(message);
  return grpc::Status::OK;
}

// Until the worker has gone.
grpc::Status Drain(Stream* stream) {
  v1::WorkerMessage message;
  while (stream->Read(&message)) {
  }
  return grpc::Status::OK;
}

StatusOr<std::unique_ptr<PlanChannel>> JoinScripted(std::vector<ScriptedService::Script> scripts,
                                                    std::unique_ptr<TestServer>* server) {
  spdlog::set_level(spdlog::level::off);
  *server = std::make_unique<TestServer>(std::make_unique<ScriptedService>(std::move(scripts)));
  return JoinServer((*server)->address(), kSmallest, "");
}

// Welcomes everybody, then sends bytes that are no message.
class GarbageReactor final : public grpc::ServerGenericBidiReactor {
 public:
  GarbageReactor() {
    v1::ServerMessage message;
    message.mutable_welcome()->set_epoch(5);
    SetBytes(message.SerializeAsString());
    StartWrite(&out_);
    StartRead(&in_);
  }
  void OnWriteDone(bool) override {
    if (std::exchange(sent_, true)) return;
    SetBytes(std::string(20, '\xff'));
    StartWrite(&out_);
  }
  void OnReadDone(bool ok) override {
    if (ok) return StartRead(&in_);
    Finish(grpc::Status::OK);
  }
  void OnDone() override { delete this; }

 private:
  void SetBytes(const std::string& bytes) {
    const grpc::Slice slice(bytes);
    out_ = grpc::ByteBuffer(&slice, 1);
  }

  grpc::ByteBuffer in_;
  grpc::ByteBuffer out_;
  bool sent_ = false;
};

class GarbageService final : public grpc::CallbackGenericService {
 public:
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    return new GarbageReactor();
  }
};

}  // namespace

TEST_CASE("passing troubles are tried again") {
  const auto answer = [](grpc::StatusCode code) {
    return [code](Stream*) { return grpc::Status(code, "not now"); };
  };
  const auto end_early = [](Stream*) { return grpc::Status::OK; };
  const auto welcome = [](Stream* stream) {
    Welcome(stream);
    return Drain(stream);
  };
  std::unique_ptr<TestServer> server;
  const auto channel = JoinScripted(
      {answer(grpc::UNAVAILABLE), answer(grpc::ABORTED), end_early, SendPlan, welcome}, &server);
  REQUIRE(channel.ok());
  CHECK((*channel)->epoch() == 5);
}

TEST_CASE("a message that does not belong ends the stream") {
  const ScriptedService::Script unexpected[] = {Welcome, [](Stream* stream) {
                                                  stream->Write({});
                                                  return grpc::Status::OK;
                                                }};
  for (const auto& script : unexpected) {
    std::unique_ptr<TestServer> server;
    const auto channel = JoinScripted({[&](Stream* stream) {
                                        Welcome(stream);
                                        script(stream);
                                        return Drain(stream);
                                      }},
                                      &server);
    REQUIRE(channel.ok());
    CHECK(!(*channel)->NextPlan().has_value());
    CHECK((*channel)->status().code() == StatusCode::kInternal);
  }
}

TEST_CASE("a server that ends the stream without an error") {
  std::unique_ptr<TestServer> server;
  const auto channel = JoinScripted({Welcome}, &server);
  REQUIRE(channel.ok());
  CHECK(!(*channel)->NextPlan().has_value());
  CHECK((*channel)->status().code() == StatusCode::kUnavailable);
}

TEST_CASE("bytes that are no message end the stream") {
  grpc::ServerBuilder builder;
  GarbageService service;
  int port = 0;
  builder.RegisterCallbackGenericService(&service);
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  const auto server = builder.BuildAndStart();
  const auto channel = JoinServer("127.0.0.1:" + std::to_string(port), kSmallest, "");
  REQUIRE(channel.ok());
  CHECK(!(*channel)->NextPlan().has_value());
  CHECK(!(*channel)->status().ok());
}

TEST_CASE("the public port of the server is named as the mistake it is") {
  const TestServer server(std::make_unique<v1::ModelService::Service>());
  const auto channel = JoinServer(server.address(), kSmallest, "");
  CHECK(channel.status().code() == StatusCode::kFailedPrecondition);
  CHECK(channel.status().message().find("--worker-listen") != std::string::npos);
}

}  // namespace hadal
