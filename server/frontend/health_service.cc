#include <algorithm>
#include <atomic>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "grpc/health/v1/health.grpc.pb.h"
#include "hadal/v1/chat.grpc.pb.h"
#include "hadal/v1/generate.grpc.pb.h"
#include "hadal/v1/model.grpc.pb.h"
#include "hadal/v1/tokenizer.grpc.pb.h"
#include "server/frontend/services.h"

namespace hadal {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

bool IsKnown(const std::string& service) {
  const std::string known[] = {"", v1::ChatService::service_full_name(),
                               v1::GenerateService::service_full_name(),
                               v1::ModelService::service_full_name(),
                               v1::TokenizerService::service_full_name()};
  return std::find(std::begin(known), std::end(known), service) != std::end(known);
}

using Serving = std::atomic<HealthCheckResponse::ServingStatus>;

// gRPC operations are started outside the lock: their reactions may run on the same thread.
class Watcher final : public grpc::ServerWriteReactor<HealthCheckResponse>,
                      public std::enable_shared_from_this<Watcher> {
 public:
  explicit Watcher(const Serving& status) : status_(status) {}

  void KeepAliveUntilDone() { self_ = shared_from_this(); }

  // Tells the health unless that is what was told last, and ends when it is to.
  void Advance() {
    grpc::Status end;
    bool finish = false;
    {
      std::lock_guard lock(mutex_);
      if (writing_ || finished_) return;
      const auto now = status_.load();
      if (now != response_.status()) {
        response_.set_status(now);
        writing_ = true;
      } else if (ended_) {
        finished_ = finish = true;
        end = end_;
      } else {
        return;
      }
    }
    finish ? Finish(end) : StartWrite(&response_);
  }

  void End(const grpc::Status& status) {
    {
      std::lock_guard lock(mutex_);
      if (!std::exchange(ended_, true)) end_ = status;
    }
    Advance();
  }

  void OnWriteDone(bool ok) override {
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
    }
    ok ? Advance() : End(grpc::Status::CANCELLED);
  }
  void OnCancel() override { End(grpc::Status::CANCELLED); }
  void OnDone() override { self_.reset(); }

 private:
  const Serving& status_;
  std::mutex mutex_;
  HealthCheckResponse response_;  // what was told last; UNKNOWN: nothing
  bool writing_ = false, ended_ = false, finished_ = false;
  grpc::Status end_;
  std::shared_ptr<Watcher> self_;
};

class HealthServiceImpl final : public HealthService, public Health::CallbackService {
 public:
  grpc::Service* service() override { return this; }

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const HealthCheckRequest* request,
                                  HealthCheckResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    response->set_status(status_);
    reactor->Finish(IsKnown(request->service())
                        ? grpc::Status::OK
                        : grpc::Status(grpc::StatusCode::NOT_FOUND,
                                       "service: this server has none of that name; leave it empty "
                                       "for the server as a whole"));
    return reactor;
  }

  grpc::ServerWriteReactor<HealthCheckResponse>* Watch(grpc::CallbackServerContext*,
                                                       const HealthCheckRequest* request) override {
    const bool known = IsKnown(request->service());
    const auto watcher = std::make_shared<Watcher>(known ? status_ : unknown_);
    watcher->KeepAliveUntilDone();
    bool closed = false;
    {
      std::lock_guard lock(mutex_);
      std::erase_if(watchers_, [](const auto& w) { return w.expired(); });
      watchers_.push_back(watcher);
      closed = closed_;
    }
    closed ? watcher->End(stops_) : watcher->Advance();
    return watcher.get();
  }

  void SetServing(bool serving) override {
    status_ = serving ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
    for (const auto& watcher : Watchers()) watcher->Advance();
  }

  void EndWatches() override {
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
    }
    for (const auto& watcher : Watchers()) watcher->End(stops_);
  }

 private:
  std::vector<std::shared_ptr<Watcher>> Watchers() {
    std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<Watcher>> all;
    for (const auto& weak : watchers_) {
      if (auto watcher = weak.lock()) all.push_back(std::move(watcher));
    }
    return all;
  }

  const grpc::Status stops_{grpc::StatusCode::UNAVAILABLE, "the server stops"};
  Serving status_{HealthCheckResponse::NOT_SERVING};
  const Serving unknown_{HealthCheckResponse::SERVICE_UNKNOWN};
  std::mutex mutex_;
  std::vector<std::weak_ptr<Watcher>> watchers_;
  bool closed_ = false;
};

}  // namespace

std::unique_ptr<HealthService> MakeHealthService() { return std::make_unique<HealthServiceImpl>(); }

}  // namespace hadal
