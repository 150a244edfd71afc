#pragma once

#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "server/engine/grpc_worker_group.h"

namespace hadal::testing {

inline constexpr std::chrono::seconds kPatience{20};

// An engine of which only the part that faces worker groups exists: it admits one at a time, and
// records what it is told.
class RecordingEngine final : public Engine {
 public:
  uint64_t NextRequestId() override { return 1; }
  Status Submit(Request, std::shared_ptr<RequestSink>) override { return OkStatus(); }
  void Cancel(uint64_t) override {}

  StatusOr<uint64_t> Join(std::shared_ptr<WorkerGroup> joining) override {
    std::lock_guard lock(mutex_);
    if (!refusal_.ok()) return refusal_;
    if (group_ != nullptr) return Status(StatusCode::kAborted, "a worker group is joined already");
    group_ = std::move(joining);
    changed_.notify_all();
    return ++epoch_;
  }
  void OnResult(StepResult result) override {
    std::lock_guard lock(mutex_);
    results_.push_back(std::move(result));
    changed_.notify_all();
  }
  void OnGroupLost(uint64_t epoch, Status reason) override {
    std::lock_guard lock(mutex_);
    losses_.emplace_back(epoch, std::move(reason));
    if (epoch == epoch_) group_ = nullptr;
    changed_.notify_all();
  }

  void StartDrain() override {}
  bool Drained() const override { return true; }
  EngineStats stats() const override { return {}; }
  int64_t RunOnce() override { return 0; }
  void Start() override {}
  void Stop() override {}

  // What Join answers from now on; OK: it admits.
  void Refuse(Status status) {
    std::lock_guard lock(mutex_);
    refusal_ = std::move(status);
  }
  // The joined group, as soon as there is one; null when that takes too long.
  std::shared_ptr<WorkerGroup> WaitForGroup() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kPatience, [this] { return group_ != nullptr; });
    return group_;
  }
  std::vector<StepResult> WaitForResults(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kPatience, [&] { return results_.size() >= count; });
    return results_;
  }
  bool AwaitResult(size_t count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kPatience, [&] { return results_.size() >= count; });
  }
  std::vector<std::pair<uint64_t, Status>> WaitForLosses(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kPatience, [&] { return losses_.size() >= count; });
    return losses_;
  }
  // As the engine does when it has closed its group.
  void Forget() {
    std::lock_guard lock(mutex_);
    group_ = nullptr;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<WorkerGroup> group_;
  uint64_t epoch_ = 0;
  std::vector<StepResult> results_;
  std::vector<std::pair<uint64_t, Status>> losses_;
  Status refusal_;
};

// A server on a port of this host; port 0: any that is free.
class TestServer {
 public:
  explicit TestServer(std::unique_ptr<grpc::Service> service, int port = 0)
      : service_(std::move(service)) {
    grpc::ServerBuilder builder;
    ConfigureWorkerServer(&builder);
    builder.RegisterService(service_.get());
    builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials(),
                             &port_);
    server_ = builder.BuildAndStart();
  }
  ~TestServer() { server_->Shutdown(std::chrono::system_clock::now()); }

  int port() const { return port_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

inline const WorkerServiceOptions kWorkerServerOptions{
    .fingerprint = "model-1", .vocab_limit = 1234, .join_secret = "open sesame"};

// The server's end of the worker stream with an engine behind it.
struct WorkerServer {
  explicit WorkerServer(const WorkerServiceOptions& options = kWorkerServerOptions, int port = 0)
      : server(MakeWorkerService(options, &engine), port) {
    spdlog::set_level(spdlog::level::off);
  }
  RecordingEngine engine;
  TestServer server;
};

}  // namespace hadal::testing
