#include "worker/runtime/plan_channel.h"

#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "hadal/v1/worker.grpc.pb.h"
#include "proto/worker_protocol.h"

namespace hadal {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::milliseconds kFirstPause{100};
constexpr std::chrono::milliseconds kLongestPause{2000};
constexpr std::chrono::seconds kWelcomeTimeout{20};
constexpr std::chrono::seconds kLogEvery{5};

// One Join stream. A hold keeps the call open for writes from outside its reactions; it is given up
// when the stream has ended and no write is on its way. gRPC operations are started outside the lock.
class GrpcPlanChannel final : public PlanChannel,
                              public grpc::ClientBidiReactor<v1::WorkerMessage, v1::ServerMessage> {
 public:
  GrpcPlanChannel(const std::shared_ptr<grpc::Channel>& channel, v1::WorkerMessage hello)
      : stub_(v1::WorkerService::NewStub(channel)) {
    out_.push_back(std::move(hello));
    stub_->async()->Join(&context_, this);
    AddHold();
    StartRead(&in_);
    Advance();
    StartCall();
  }

  ~GrpcPlanChannel() override {
    context_.TryCancel();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return done_; });
  }

  // OK once the server has accepted the group.
  Status WaitForWelcome() {
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, kWelcomeTimeout, [this] { return welcome_ || done_; })) {
      return welcome_ ? OkStatus() : status_;
    }
    return Unavailable("no answer within {} s", kWelcomeTimeout.count());
  }

  std::optional<std::string> NextPlan() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !plans_.empty() || done_; });
    if (plans_.empty()) return std::nullopt;
    std::string plan = std::move(plans_.front());
    plans_.pop_front();
    return plan;
  }

  void SendResult(std::string result_bytes) override {
    v1::WorkerMessage message;
    message.set_result(std::move(result_bytes));
    Send(std::move(message));
  }

  void SendFailure(const std::string& cause) override {
    v1::WorkerMessage message;
    message.set_failure(cause);
    Send(std::move(message));
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(1),
                      [this] { return done_ || (out_.empty() && !writing_); });
  }

  Status status() const override {
    std::lock_guard lock(mutex_);
    return status_;
  }
  uint64_t epoch() const override { return epoch_; }
  int32_t vocab_limit() const override { return vocab_limit_; }

  void OnReadDone(bool ok) override {
    if (!ok) return OnStreamEnd();
    {
      std::lock_guard lock(mutex_);
      if (in_.has_plan()) {
        plans_.push_back(std::move(*in_.mutable_plan()));
      } else if (in_.has_welcome()) {
        welcome_ = true;
        epoch_ = in_.welcome().epoch();
        vocab_limit_ = in_.welcome().vocab_limit();
      }
      changed_.notify_all();
    }
    StartRead(&in_);
  }

  void OnWriteDone(bool ok) override {
    bool release = false;
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
      release = closed_;
      if (!ok) out_.clear();
      changed_.notify_all();
    }
    if (release) return RemoveHold();
    Advance();
  }

  void OnDone(const grpc::Status& status) override {
    std::lock_guard lock(mutex_);
    done_ = true;
    status_ = status.ok() ? Unavailable("the server closed the stream")
                          : Status(static_cast<StatusCode>(status.error_code()), status.error_message());
    changed_.notify_all();
  }

 private:
  void OnStreamEnd() {
    bool release = false;
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
      out_.clear();
      release = !writing_;
    }
    if (release) RemoveHold();
  }

  void Send(v1::WorkerMessage message) {
    {
      std::lock_guard lock(mutex_);
      if (closed_) return;
      out_.push_back(std::move(message));
    }
    Advance();
  }

  void Advance() {
    {
      std::lock_guard lock(mutex_);
      if (writing_ || closed_ || out_.empty()) return;
      writing_ = true;
      message_ = std::move(out_.front());
      out_.pop_front();
    }
    StartWrite(&message_);
  }

  const std::unique_ptr<v1::WorkerService::Stub> stub_;
  grpc::ClientContext context_;
  v1::ServerMessage in_;
  v1::WorkerMessage message_;  // being written
  uint64_t epoch_ = 0;         // constant once welcome_
  int32_t vocab_limit_ = 0;    // constant once welcome_

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // All below are guarded by mutex_.
  std::deque<std::string> plans_;
  std::deque<v1::WorkerMessage> out_;
  bool welcome_ = false;
  bool writing_ = false;
  bool closed_ = false;  // nothing is read or sent any more
  bool done_ = false;    // gRPC has forgotten the call
  Status status_;        // set with done_
};

v1::WorkerMessage MakeHello(const GroupCapacity& capacity, const std::string& join_secret) {
  char host[256] = {};
  gethostname(host, sizeof(host) - 1);
  v1::WorkerMessage message;
  v1::Hello* hello = message.mutable_hello();
  hello->set_protocol_version(kWorkerProtocolVersion);
  hello->set_fingerprint(capacity.fingerprint);
  hello->set_tensor_parallel(capacity.tensor_parallel);
  hello->set_data_parallel(capacity.data_parallel);
  hello->set_kv_blocks(capacity.kv_blocks);
  hello->set_max_slots(capacity.max_slots);
  hello->set_max_step_tokens(capacity.max_step_tokens);
  hello->set_join_secret(join_secret);
  hello->set_host(host);
  return message;
}

std::shared_ptr<grpc::Channel> OpenChannel(const std::string& address) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(-1);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kWorkerKeepaliveTimeMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kWorkerKeepaliveTimeoutMs);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args);
}

bool RefusedForGood(const Status& status) {
  return status.code() == StatusCode::kFailedPrecondition ||
         status.code() == StatusCode::kPermissionDenied ||
         status.code() == StatusCode::kInvalidArgument || status.code() == StatusCode::kUnimplemented;
}

}  // namespace

StatusOr<std::unique_ptr<PlanChannel>> JoinServer(const std::string& address,
                                                  const GroupCapacity& capacity,
                                                  const std::string& join_secret) {
  const std::shared_ptr<grpc::Channel> channel = OpenChannel(address);
  auto pause = kFirstPause;
  auto next_line = steady_clock::now() + std::chrono::seconds(1);
  for (;;) {
    auto joined = std::make_unique<GrpcPlanChannel>(channel, MakeHello(capacity, join_secret));
    const Status status = joined->WaitForWelcome();
    if (status.ok()) return std::unique_ptr<PlanChannel>(std::move(joined));
    joined.reset();
    if (RefusedForGood(status)) {
      return Status(status.code(), fmt::format("the server at {} refuses the workers: {}", address,
                                               status.message()));
    }
    if (steady_clock::now() >= next_line) {
      spdlog::warn("cannot join the server at {} ({}); trying again", address, status.message());
      next_line = steady_clock::now() + kLogEvery;
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, kLongestPause);
  }
}

}  // namespace hadal
