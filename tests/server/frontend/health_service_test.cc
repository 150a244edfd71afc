#include <grpcpp/grpcpp.h>

#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "grpc/health/v1/health.grpc.pb.h"
#include "server/frontend/services.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using Status = HealthCheckResponse::ServingStatus;

// A server that has nothing but its health.
class Served {
 public:
  Served() {
    grpc::ServerBuilder builder;
    builder.RegisterService(health->service());
    server_ = builder.BuildAndStart();
    stub = Health::NewStub(server_->InProcessChannel({}));
  }
  ~Served() {
    health->EndWatches();
    server_->Shutdown();
  }

  grpc::StatusCode Check(const std::string& service, Status* status) const {
    HealthCheckRequest request;
    request.set_service(service);
    HealthCheckResponse response;
    grpc::ClientContext context;
    const grpc::Status done = stub->Check(&context, request, &response);
    *status = response.status();
    return done.error_code();
  }

  const std::unique_ptr<HealthService> health = MakeHealthService();
  std::unique_ptr<Health::Stub> stub;

 private:
  std::unique_ptr<grpc::Server> server_;
};

class Watched {
 public:
  Watched(const Served& served, const std::string& service) {
    HealthCheckRequest request;
    request.set_service(service);
    reader_ = served.stub->Watch(&context_, request);
  }
  Status Next() {
    HealthCheckResponse response;
    return reader_->Read(&response) ? response.status() : HealthCheckResponse::UNKNOWN;
  }
  void Cancel() { context_.TryCancel(); }
  grpc::StatusCode End() {
    HealthCheckResponse response;
    while (reader_->Read(&response)) {
    }
    return reader_->Finish().error_code();
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<HealthCheckResponse>> reader_;
};

TEST_CASE("health is NOT_SERVING until it is told otherwise, for every service that there is") {
  const Served served;
  Status status{};
  for (const bool serving : {false, true, false}) {
    if (serving) served.health->SetServing(true);
    if (!serving && status == HealthCheckResponse::SERVING) served.health->SetServing(false);
    for (const char* service : {"", "hadal.v1.ChatService", "hadal.v1.GenerateService",
                                "hadal.v1.TokenizerService", "hadal.v1.ModelService"}) {
      CAPTURE(service, serving);
      CHECK(served.Check(service, &status) == grpc::StatusCode::OK);
      CHECK(status == (serving ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING));
    }
    CHECK(served.Check("hadal.v1.Chat", &status) == grpc::StatusCode::NOT_FOUND);
    status = serving ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
  }
}

TEST_CASE("a watch is told the health and its changes, and ends with the server's word") {
  const Served served;
  Watched watched(served, ""), unknown(served, "nobody");
  CHECK(watched.Next() == HealthCheckResponse::NOT_SERVING);
  CHECK(unknown.Next() == HealthCheckResponse::SERVICE_UNKNOWN);
  served.health->SetServing(false);  // no change, nothing to tell
  served.health->SetServing(true);
  CHECK(watched.Next() == HealthCheckResponse::SERVING);
  served.health->SetServing(false);
  CHECK(watched.Next() == HealthCheckResponse::NOT_SERVING);
  served.health->EndWatches();
  CHECK(watched.End() == grpc::StatusCode::UNAVAILABLE);
  CHECK(unknown.End() == grpc::StatusCode::UNAVAILABLE);
  CHECK(Watched(served, "").End() == grpc::StatusCode::UNAVAILABLE);
}

TEST_CASE("watches that come, read and go while the health changes all learn the last one") {
  const uint64_t seed = testing::RandomSeed();
  CAPTURE(seed);
  const Served served;
  std::vector<std::thread> threads;
  std::vector<int> learnt(12);
  for (size_t i = 0; i < learnt.size(); ++i) {
    threads.emplace_back([&, i] {
      std::mt19937_64 rng(seed + i);
      for (int round = 0; round < 20; ++round) {
        Watched gone(served, "");
        if (rng() % 2 == 0) gone.Next();
        gone.Cancel();
        gone.End();
      }
      Watched stays(served, "");
      Status status{};
      Status last{};
      while ((status = stays.Next()) != HealthCheckResponse::UNKNOWN) last = status;
      learnt[i] = last;
    });
  }
  for (int i = 0; i < 2000; ++i) served.health->SetServing(i % 2 == 0);
  served.health->SetServing(true);
  Watched late(served, "");
  CHECK(late.Next() == HealthCheckResponse::SERVING);
  served.health->EndWatches();  // nobody waits: the last health is told before the end
  for (std::thread& thread : threads) thread.join();
  for (const int last : learnt) CHECK(last == HealthCheckResponse::SERVING);
}

}  // namespace
}  // namespace hadal
