#include "client/connection.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/check.h"
#include "tests/support/catch.h"
#include "tests/support/mentions.h"

namespace hadal {
namespace {
using testing::Mentions;

// Takes connections and says nothing: what a dialling client meets while a host or a network comes
// up.
class SilentListener {
 public:
  SilentListener() {
    sockaddr_in address{.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    auto* any = reinterpret_cast<sockaddr*>(&address);
    HADAL_CHECK(bind(fd_, any, size) == 0 && listen(fd_, 64) == 0);
    HADAL_CHECK(getsockname(fd_, any, &size) == 0);
    address_ = fmt::format("127.0.0.1:{}", ntohs(address.sin_port));
  }
  ~SilentListener() { close(fd_); }
  SilentListener(const SilentListener&) = delete;
  SilentListener& operator=(const SilentListener&) = delete;
  const std::string& address() const { return address_; }

 private:
  const int fd_ = socket(AF_INET, SOCK_STREAM, 0);
  std::string address_;
};

class FakeModelService final : public v1::ModelService::Service {
 public:
  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest*,
                        v1::GetModelResponse* response) override {
    response->set_ready(true);
    return grpc::Status::OK;
  }
};

TEST_CASE("a server that comes up where nobody answered is found within seconds") {
  auto silent = std::make_unique<SilentListener>();
  const std::string address = silent->address();
  Status status;
  std::chrono::steady_clock::time_point found;
  std::thread waiting([&] {
    status = WaitUntilReady(address, 60);
    found = std::chrono::steady_clock::now();
  });
  std::this_thread::sleep_for(std::chrono::seconds(3));
  silent.reset();
  FakeModelService service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const auto server = builder.BuildAndStart();
  const auto up = std::chrono::steady_clock::now();
  waiting.join();
  REQUIRE(port != 0);
  REQUIRE(status.ok());
  REQUIRE(found - up < std::chrono::seconds(4));
  server->Shutdown();
}

TEST_CASE("waiting for a server that says nothing ends in time") {
  const SilentListener silent;
  const auto start = std::chrono::steady_clock::now();
  const Status status = WaitUntilReady(silent.address(), 1.5);
  REQUIRE(status.code() == StatusCode::kDeadlineExceeded);
  REQUIRE(Mentions(status.message(), "the server does not answer"));
  REQUIRE(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
}

TEST_CASE("what is missing is said in the order in which it matters") {
  REQUIRE(WhatIsMissing(Unavailable("gone")) == "the server does not answer");
  v1::GetModelResponse model;
  REQUIRE(WhatIsMissing(model) == "no worker group has joined yet");
  model.set_draining(true);
  REQUIRE(WhatIsMissing(model) == "the server is shutting down");
  model.set_draining(false);
  model.set_ready(true);
  REQUIRE(WhatIsMissing(model).empty());
}

}  // namespace
}  // namespace hadal
