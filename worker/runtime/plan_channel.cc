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

#include "common/utf8.h"
#include "hadal/v1/worker.grpc.pb.h"
#include "proto/worker_protocol.h"

namespace hadal {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::milliseconds kFirstPause{100};
constexpr std::chrono::milliseconds kLongestPause{2000};
constexpr std::chrono::seconds kWelcomeTimeout{5};
constexpr std::chrono::seconds kFirstLogAfter{1};
constexpr std::chrono::seconds kLogEvery{5};
constexpr std::chrono::seconds kFailureTimeout{1};
constexpr size_t kLongestFailure = 1000;
constexpr size_t kLongestHost = 255;

// One Join stream. gRPC calls OnReadDone one at a time, OnWriteDone beside it, and OnDone after
// all. A read is outstanding until the stream has ended, so that other threads may start writes
// until then without a hold. Operations are started under the lock; gRPC never calls back from
// within them.
class GrpcPlanChannel final : public PlanChannel,
                              public grpc::ClientBidiReactor<v1::WorkerMessage, v1::ServerMessage> {
 public:
  GrpcPlanChannel(const std::shared_ptr<grpc::Channel>& channel, v1::WorkerMessage hello)
      : stub_(v1::WorkerService::NewStub(channel)) {
    stub_->async()->Join(&context_, this);
    StartRead(&in_);
    Send(std::move(hello));
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
    if (!changed_.wait_for(lock, kWelcomeTimeout, [this] { return epoch_ != 0 || done_; })) {
      return Unavailable("no answer within {} s", kWelcomeTimeout.count());
    }
    return epoch_ != 0 ? OkStatus() : status_;
  }

  std::optional<std::string> NextPlan() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !plans_.empty() || done_; });
    if (done_) return std::nullopt;  // nobody waits for the results of plans that are left
    std::string plan = std::move(plans_.front());
    plans_.pop_front();
    return plan;
  }

  bool WaitForPlan(std::chrono::microseconds patience) override {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, patience, [this] { return !plans_.empty() || done_; });
  }

  void SendResult(std::string result_bytes) override {
    v1::WorkerMessage message;
    message.set_result(std::move(result_bytes));
    Send(std::move(message));
  }

  void SendFailure(const std::string& cause) override {
    v1::WorkerMessage message;
    message.set_failure(DisplayText(cause, kLongestFailure));
    Send(std::move(message));
    // The server ends the stream when it has read the cause. Bytes that were merely written would
    // be lost if this process exited now.
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kFailureTimeout, [this] { return done_; });
  }

  Status status() const override {
    std::lock_guard lock(mutex_);
    return status_;
  }
  uint64_t epoch() const override {
    std::lock_guard lock(mutex_);
    return epoch_;
  }
  int32_t vocab_limit() const override {
    std::lock_guard lock(mutex_);
    return vocab_limit_;
  }

  void OnReadDone(bool ok) override {
    {
      std::lock_guard lock(mutex_);
      if (!ok) {
        read_ended_ = true;
        return Advance();
      }
      Take(&in_);
    }
    changed_.notify_all();
    StartRead(&in_);
  }

  void OnWriteDone(bool) override {
    std::lock_guard lock(mutex_);
    writing_ = false;
    Advance();  // when the write failed, so does the read
  }

  void OnDone(const grpc::Status& status) override {
    std::lock_guard lock(mutex_);
    done_ = true;
    if (status_.ok()) {
      status_ = status.ok()
                    ? Unavailable("the server closed the stream")
                    : Status(static_cast<StatusCode>(status.error_code()), status.error_message());
    }
    changed_.notify_all();  // under the lock: the destructor waits for it
  }

 private:
  // REQUIRES: mutex_ held.
  void Take(v1::ServerMessage* message) {
    if (message->has_plan() && epoch_ != 0) {
      plans_.push_back(std::move(*message->mutable_plan()));
    } else if (message->has_welcome() && epoch_ == 0 && message->welcome().epoch() != 0) {
      epoch_ = message->welcome().epoch();
      vocab_limit_ = message->welcome().vocab_limit();
    } else {
      status_ = Internal("the server sent neither welcome nor plan; use binaries of one build");
      context_.TryCancel();
    }
  }

  void Send(v1::WorkerMessage message) {
    std::lock_guard lock(mutex_);
    if (read_ended_) return;
    out_.push_back(std::move(message));
    Advance();
  }

  // Starts the next write or, after the last read, ends our half of the stream: a server that sent
  // bytes which are no message would otherwise believe the stream alive. REQUIRES: mutex_ held.
  void Advance() {
    if (writing_ || writes_ended_) return;
    if (read_ended_) {
      writes_ended_ = true;
      StartWritesDone();
    } else if (!out_.empty()) {
      writing_ = true;
      message_ = std::move(out_.front());
      out_.pop_front();
      StartWrite(&message_);
    }
  }

  const std::unique_ptr<v1::WorkerService::Stub> stub_;
  grpc::ClientContext context_;
  v1::ServerMessage in_;  // owned by the outstanding read

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // All below are guarded by mutex_.
  std::deque<std::string> plans_;
  std::deque<v1::WorkerMessage> out_;
  v1::WorkerMessage message_;  // being written
  uint64_t epoch_ = 0;         // 0: no welcome yet
  int32_t vocab_limit_ = 0;
  bool writing_ = false;
  bool read_ended_ = false;
  bool writes_ended_ = false;
  bool done_ = false;  // gRPC has forgotten the call
  Status status_;
};

v1::WorkerMessage MakeHello(const GroupCapacity& capacity, const std::string& join_secret) {
  char host[kLongestHost + 1] = {};
  gethostname(host, kLongestHost);
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
  hello->set_host(DisplayText(host, kLongestHost));
  return message;
}

std::shared_ptr<grpc::Channel> OpenChannel(const std::string& address) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(-1);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, static_cast<int>(kFirstPause.count()));
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, static_cast<int>(kLongestPause.count()));
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kWorkerKeepaliveTimeMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kWorkerKeepaliveTimeoutMs);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);     // JoinServer does that
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // the server is on this network
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args);
}

// Not OK when no later attempt can mend it. Another group that is joined (ABORTED) may leave.
Status RefusalForGood(const Status& status, const std::string& address) {
  switch (status.code()) {
    case StatusCode::kFailedPrecondition:
    case StatusCode::kPermissionDenied:
    case StatusCode::kInvalidArgument:
      return {status.code(),
              fmt::format("the server at {} refuses the workers: {}", address, status.message())};
    case StatusCode::kUnimplemented:
      return FailedPrecondition(
          "the server at {} takes no workers: --server must be hadal-server's --worker-listen "
          "address",
          address);
    default:
      return OkStatus();
  }
}

}  // namespace

StatusOr<std::unique_ptr<PlanChannel>> JoinServer(const std::string& address,
                                                  const GroupCapacity& capacity,
                                                  const std::string& join_secret) {
  const std::shared_ptr<grpc::Channel> channel = OpenChannel(address);
  auto pause = kFirstPause;
  auto next_line = steady_clock::now() + kFirstLogAfter;
  for (;;) {
    auto joined = std::make_unique<GrpcPlanChannel>(channel, MakeHello(capacity, join_secret));
    const Status status = joined->WaitForWelcome();
    if (status.ok()) return std::unique_ptr<PlanChannel>(std::move(joined));
    HADAL_RETURN_IF_ERROR(RefusalForGood(status, address));
    if (steady_clock::now() >= next_line) {
      spdlog::warn("cannot join the server at {} ({}); trying again", address, status.message());
      next_line = steady_clock::now() + kLogEvery;
    }
    joined.reset();
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, kLongestPause);
  }
}

}  // namespace hadal
