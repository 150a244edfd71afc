#include "server/engine/grpc_worker_group.h"

#include <spdlog/spdlog.h>

#include <deque>
#include <mutex>
#include <set>
#include <string_view>
#include <utility>

#include "common/utf8.h"
#include "hadal/v1/worker.grpc.pb.h"
#include "proto/step_plan_codec.h"
#include "proto/worker_protocol.h"

namespace hadal {
namespace {

// A status travels in a header. Peers accept 8 KiB of them, and escaping can treble its length.
constexpr size_t kLongestReason = 2000;
constexpr size_t kLongestFailure = 1000;
constexpr size_t kLongestName = 100;

// A Hello beyond these is a mistake: the engine's tables for it would not fit into memory.
constexpr int64_t kMaxRanks = 1 << 16;
constexpr int64_t kMaxKvBlocks = 1 << 24;  // over all data-parallel groups
constexpr int64_t kMaxSlots = 1 << 20;     // over all data-parallel groups
constexpr int64_t kMaxStepTokens = 1 << 20;

// In a time that depends on the lengths alone.
bool SameSecret(std::string_view given, std::string_view expected) {
  if (given.size() != expected.size()) return false;
  volatile unsigned char difference = 0;
  for (size_t i = 0; i < given.size(); ++i) {
    difference = difference | static_cast<unsigned char>(given[i] ^ expected[i]);
  }
  return difference == 0;
}

grpc::Status ToGrpc(const Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()),
          DisplayText(status.message(), kLongestReason)};
}

GroupCapacity CapacityOf(const v1::Hello& hello) {
  return {.fingerprint = hello.fingerprint(),
          .tensor_parallel = hello.tensor_parallel(),
          .data_parallel = hello.data_parallel(),
          .kv_blocks = hello.kv_blocks(),
          .max_slots = hello.max_slots(),
          .max_step_tokens = hello.max_step_tokens()};
}

// `limit` holds for the product of `value` and `factor`.
Status CheckRange(const char* field, int64_t value, int64_t factor, int64_t limit) {
  if (value >= 1 && value * factor <= limit) return OkStatus();
  return InvalidArgument("{}: {} given, it must be at least 1 and at most {} over the whole group",
                         field, value, limit);
}

Status CheckHello(const v1::Hello& hello, const WorkerServiceOptions& options) {
  if (hello.protocol_version() != kWorkerProtocolVersion) {
    return FailedPrecondition(
        "protocol_version: the worker speaks {}, this server {}; use binaries of one build",
        hello.protocol_version(), kWorkerProtocolVersion);
  }
  if (!options.join_secret.empty() && !SameSecret(hello.join_secret(), options.join_secret)) {
    return {StatusCode::kPermissionDenied,
            "join_secret: wrong; give the workers the server's --join-secret-file"};
  }
  if (!options.fingerprint.empty() && hello.fingerprint() != options.fingerprint) {
    return FailedPrecondition(
        "fingerprint: the workers and the server were given different model directories ({} there, "
        "{} here); start both with the same --model",
        DisplayText(hello.fingerprint(), kLongestName), options.fingerprint);
  }
  const int64_t groups = hello.data_parallel();
  HADAL_RETURN_IF_ERROR(CheckRange("data_parallel", groups, 1, kMaxRanks));
  HADAL_RETURN_IF_ERROR(CheckRange("tensor_parallel", hello.tensor_parallel(), groups, kMaxRanks));
  HADAL_RETURN_IF_ERROR(CheckRange("kv_blocks", hello.kv_blocks(), groups, kMaxKvBlocks));
  HADAL_RETURN_IF_ERROR(CheckRange("max_slots", hello.max_slots(), groups, kMaxSlots));
  return CheckRange("max_step_tokens", hello.max_step_tokens(), 1, kMaxStepTokens);
}

// Warns of each once: a group that waits for its turn asks, and is refused, every two seconds.
class Refusals {
 public:
  void Log(const std::string& peer, const Status& status) {
    const std::string line = fmt::format("worker group from {} refused: {}", peer, status.ToString());
    const std::lock_guard lock(mutex_);
    if (lines_.size() >= 1000) lines_.clear();
    spdlog::log(lines_.insert(line).second ? spdlog::level::warn : spdlog::level::debug, line);
  }

 private:
  std::mutex mutex_;
  std::set<std::string> lines_;
};

// One Join stream: reactor and worker group in one object, which gRPC keeps until OnDone and the
// engine until it has forgotten the group. gRPC calls OnReadDone one at a time and OnWriteDone
// beside it. A read is outstanding until the stream has ended, so every end of it is seen there:
// behind the worker's last message, never before it. gRPC operations are started outside the lock.
class JoinReactor final : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::ServerMessage>,
                          public WorkerGroup,
                          public std::enable_shared_from_this<JoinReactor> {
 public:
  JoinReactor(const WorkerServiceOptions& options, Engine* engine, Refusals* refusals,
              std::string peer)
      : options_(options), engine_(engine), refusals_(refusals), peer_(std::move(peer)) {}

  void Start() {
    self_ = shared_from_this();
    StartRead(&in_);
  }

  const GroupCapacity& capacity() const override { return capacity_; }

  void Submit(const StepPlan& plan) override {
    v1::ServerMessage message;
    message.set_plan(EncodeStepPlan(plan));
    {
      std::lock_guard lock(mutex_);
      if (ended_) return;
      out_.push_back(std::move(message));
    }
    Advance();
  }

  void Close(const Status& reason) override {
    End(reason.ok() ? Unavailable("the server ended the group") : reason);
  }

  void OnReadDone(bool ok) override {
    const Status status = !ok ? EndOfReading() : epoch_ == 0 ? Greet() : TakeMessage();
    if (status.ok()) return StartRead(&in_);
    if (epoch_ == 0) refusals_->Log(peer_, status);
    // The engine knows when it was the one to end the stream.
    if (End(status) && epoch_ != 0) engine_->OnGroupLost(epoch_, status);
  }

  void OnWriteDone(bool) override {
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
    }
    Advance();  // when the write failed, so does the read
  }

  void OnDone() override { self_.reset(); }

 private:
  Status EndOfReading() const {
    if (epoch_ == 0) return InvalidArgument("the stream of a worker group must begin with hello");
    return Unavailable("the connection to the workers on {} was lost", host_);
  }

  Status Greet() {
    if (!in_.has_hello()) {
      return InvalidArgument("the stream of a worker group must begin with hello");
    }
    const v1::Hello& hello = in_.hello();
    HADAL_RETURN_IF_ERROR(CheckHello(hello, options_));
    capacity_ = CapacityOf(hello);
    host_ = fmt::format("{} ({})", DisplayText(hello.host(), kLongestName), peer_);
    HADAL_ASSIGN_OR_RETURN(epoch_, engine_->Join(shared_from_this()));
    spdlog::info("worker group of {} x {} ranks on {} joined", capacity_.tensor_parallel,
                 capacity_.data_parallel, host_);
    v1::ServerMessage welcome;
    welcome.mutable_welcome()->set_epoch(epoch_);
    welcome.mutable_welcome()->set_vocab_limit(options_.vocab_limit);
    {
      std::lock_guard lock(mutex_);
      welcomed_ = true;
      out_.push_front(std::move(welcome));  // the engine may have sent a plan already
    }
    Advance();
    return OkStatus();
  }

  Status TakeMessage() {
    if (in_.has_failure()) {
      return {StatusCode::kAborted, DisplayText(in_.failure(), kLongestFailure)};
    }
    if (!in_.has_result()) return InvalidArgument("the workers sent neither result nor failure");
    const std::string& bytes = in_.result();
    HADAL_ASSIGN_OR_RETURN(
        StepResult result,
        DecodeStepResult({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}));
    if (result.epoch != epoch_) {
      return InvalidArgument("the workers of epoch {} sent a result of epoch {}", epoch_,
                             result.epoch);
    }
    // Closed at this very moment: the engine ignores results of an epoch that is over.
    if (!ended()) engine_->OnResult(std::move(result));
    return OkStatus();
  }

  bool ended() const {
    std::lock_guard lock(mutex_);
    return ended_;
  }

  // The stream ends with `status` as soon as the write on its way is over. False: it had an end.
  bool End(const Status& status) {
    {
      std::lock_guard lock(mutex_);
      if (std::exchange(ended_, true)) return false;
      out_.clear();
      status_ = ToGrpc(status);
    }
    Advance();
    return true;
  }

  // Starts the next write, or the end of the stream.
  void Advance() {
    bool write = false;
    {
      std::lock_guard lock(mutex_);
      if (writing_ || finished_) return;
      if (ended_) {
        finished_ = true;
      } else if (welcomed_ && !out_.empty()) {
        writing_ = write = true;
        message_ = std::move(out_.front());
        out_.pop_front();
      } else {
        return;
      }
    }
    if (write) {
      StartWrite(&message_);
    } else {
      Finish(status_);
    }
  }

  const WorkerServiceOptions& options_;
  Engine* const engine_;
  Refusals* const refusals_;
  const std::string peer_;
  std::shared_ptr<JoinReactor> self_;  // until OnDone
  v1::ServerMessage message_;          // being written
  // Owned by OnReadDone; constant once joined, but for in_.
  v1::WorkerMessage in_;
  GroupCapacity capacity_;
  std::string host_;
  uint64_t epoch_ = 0;  // 0: not joined

  mutable std::mutex mutex_;
  // All below are guarded by mutex_.
  std::deque<v1::ServerMessage> out_;
  bool welcomed_ = false;
  bool writing_ = false;
  bool ended_ = false;     // nothing is sent any more
  bool finished_ = false;  // gRPC was told
  grpc::Status status_;    // constant once ended_
};

class WorkerServiceImpl final : public v1::WorkerService::CallbackService {
 public:
  WorkerServiceImpl(const WorkerServiceOptions& options, Engine* engine)
      : options_(options), engine_(engine) {}

  grpc::ServerBidiReactor<v1::WorkerMessage, v1::ServerMessage>* Join(
      grpc::CallbackServerContext* context) override {
    auto reactor = std::make_shared<JoinReactor>(options_, engine_, &refusals_, context->peer());
    reactor->Start();
    return reactor.get();
  }

 private:
  const WorkerServiceOptions options_;
  Engine* const engine_;
  Refusals refusals_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeWorkerService(const WorkerServiceOptions& options,
                                                 Engine* engine) {
  return std::make_unique<WorkerServiceImpl>(options, engine);
}

void ConfigureWorkerServer(grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(-1);
  builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kWorkerKeepaliveTimeMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kWorkerKeepaliveTimeoutMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              kWorkerKeepaliveTimeMs / 2);
}

}  // namespace hadal
