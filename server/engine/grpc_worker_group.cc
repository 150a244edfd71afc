#include "server/engine/grpc_worker_group.h"

#include <spdlog/spdlog.h>

#include <deque>
#include <mutex>
#include <string_view>
#include <utility>

#include "common/utf8.h"
#include "hadal/v1/worker.grpc.pb.h"
#include "proto/step_plan_codec.h"
#include "proto/worker_protocol.h"

namespace hadal {
namespace {

// In a time that depends on the lengths alone.
bool SameSecret(std::string_view given, std::string_view expected) {
  unsigned difference = given.size() == expected.size() ? 0 : 1;
  for (size_t i = 0; i < given.size() && !expected.empty(); ++i) {
    difference |= static_cast<unsigned char>(given[i]) ^
                  static_cast<unsigned char>(expected[i % expected.size()]);
  }
  return difference == 0;
}

grpc::Status ToGrpc(const Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()), status.message()};
}

Status CheckHello(const v1::Hello& hello, const WorkerServiceOptions& options) {
  if (hello.protocol_version() != kWorkerProtocolVersion) {
    return FailedPrecondition("protocol_version: the worker speaks {}, this server {}; use binaries of "
                              "one build", hello.protocol_version(), kWorkerProtocolVersion);
  }
  if (!options.join_secret.empty() && !SameSecret(hello.join_secret(), options.join_secret)) {
    return {StatusCode::kPermissionDenied,
            "join_secret: wrong; give the workers the server's --join-secret-file"};
  }
  if (!options.fingerprint.empty() && hello.fingerprint() != options.fingerprint) {
    return FailedPrecondition("fingerprint: the workers were given another model directory than the "
                              "server ({} here, {} there)", options.fingerprint,
                              DisplayText(hello.fingerprint(), 64));
  }
  if (hello.tensor_parallel() < 1) {
    return InvalidArgument("tensor_parallel: {} given, at least 1 is needed", hello.tensor_parallel());
  }
  return OkStatus();
}

// One Join stream. Reactor and worker group in one object: gRPC keeps it until OnDone, the engine until
// it has forgotten the group. gRPC operations are started outside the lock.
class JoinReactor final : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::ServerMessage>,
                          public WorkerGroup,
                          public std::enable_shared_from_this<JoinReactor> {
 public:
  JoinReactor(const WorkerServiceOptions& options, Engine* engine, std::string peer)
      : options_(options), engine_(engine), peer_(std::move(peer)) {}

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
    {
      std::lock_guard lock(mutex_);
      lost_ = true;  // the engine knows
    }
    End(reason.ok() ? Unavailable("the server ended the group") : reason);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      Lose(Unavailable("the connection to the workers was lost"));
      return End(OkStatus());
    }
    const Status status = Handle(&in_);
    if (status.ok()) return StartRead(&in_);
    if (!greeted_) spdlog::warn("worker group from {} refused: {}", peer_, status.ToString());
    Lose(status);
    End(status);
  }

  void OnWriteDone(bool ok) override {
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
      if (!ok) out_.clear();
    }
    Advance();
  }

  void OnCancel() override {
    Lose(Unavailable("the workers have gone"));
    End({StatusCode::kCancelled, "cancelled"});
  }

  void OnDone() override { self_.reset(); }

 private:
  // Thread: gRPC's, one read at a time. Not OK: the stream ends with it.
  Status Handle(v1::WorkerMessage* message) {
    switch (message->message_case()) {
      case v1::WorkerMessage::kHello:
        if (!greeted_) return Greet(message->hello());
        return InvalidArgument("a second hello");
      case v1::WorkerMessage::kResult: {
        const std::string& bytes = message->result();
        if (!greeted_) break;
        HADAL_ASSIGN_OR_RETURN(
            StepResult result,
            DecodeStepResult({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}));
        engine_->OnResult(std::move(result));
        return OkStatus();
      }
      case v1::WorkerMessage::kFailure:
        if (!greeted_) break;
        return Unavailable("{}", DisplayText(message->failure(), 1000));
      case v1::WorkerMessage::MESSAGE_NOT_SET: break;
    }
    return InvalidArgument("the first message of a worker group must be hello, and no other empty");
  }

  Status Greet(const v1::Hello& hello) {
    HADAL_RETURN_IF_ERROR(CheckHello(hello, options_));
    capacity_ = {.fingerprint = hello.fingerprint(),
                 .tensor_parallel = hello.tensor_parallel(),
                 .data_parallel = hello.data_parallel(),
                 .kv_blocks = hello.kv_blocks(),
                 .max_slots = hello.max_slots(),
                 .max_step_tokens = hello.max_step_tokens()};
    HADAL_ASSIGN_OR_RETURN(const uint64_t epoch, engine_->Join(shared_from_this()));
    greeted_ = true;
    spdlog::info("worker group of {} x {} ranks on {} ({}) joined", capacity_.tensor_parallel,
                 capacity_.data_parallel, DisplayText(hello.host(), 100), peer_);
    v1::ServerMessage welcome;
    welcome.mutable_welcome()->set_epoch(epoch);
    welcome.mutable_welcome()->set_vocab_limit(options_.vocab_limit);
    bool ended = false;
    {
      std::lock_guard lock(mutex_);
      epoch_ = epoch;
      ended = ended_;
      out_.push_front(std::move(welcome));  // the engine may have sent a plan already
    }
    if (ended) Lose(Unavailable("the workers have gone"));
    Advance();
    return OkStatus();
  }

  // Tells the engine, once, that its group has gone.
  void Lose(const Status& reason) {
    uint64_t epoch = 0;
    {
      std::lock_guard lock(mutex_);
      if (lost_ || epoch_ == 0) return;
      lost_ = true;
      epoch = epoch_;
    }
    engine_->OnGroupLost(epoch, reason);
  }

  void End(const Status& status) {
    {
      std::lock_guard lock(mutex_);
      if (std::exchange(ended_, true)) return;
      out_.clear();
      status_ = ToGrpc(status);
    }
    Advance();
  }

  // Starts the next write, or the end of the stream.
  void Advance() {
    bool write = false;
    {
      std::lock_guard lock(mutex_);
      if (writing_ || finished_) return;
      if (ended_) {
        finished_ = true;
      } else if (epoch_ != 0 && !out_.empty()) {
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
  const std::string peer_;
  std::shared_ptr<JoinReactor> self_;  // until OnDone
  v1::WorkerMessage in_;
  v1::ServerMessage message_;  // being written
  GroupCapacity capacity_;     // constant once joined
  bool greeted_ = false;       // owned by the reading thread

  std::mutex mutex_;
  // All below are guarded by mutex_.
  std::deque<v1::ServerMessage> out_;
  uint64_t epoch_ = 0;
  bool writing_ = false;
  bool lost_ = false;      // the engine knows that the group has gone
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
    auto reactor = std::make_shared<JoinReactor>(options_, engine_, context->peer());
    reactor->Start();
    return reactor.get();
  }

 private:
  const WorkerServiceOptions options_;
  Engine* const engine_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeWorkerService(const WorkerServiceOptions& options,
                                                 Engine* engine) {
  return std::make_unique<WorkerServiceImpl>(options, engine);
}

void ConfigureWorkerServer(grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(-1);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kWorkerKeepaliveTimeMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kWorkerKeepaliveTimeoutMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              kWorkerKeepaliveTimeMs / 2);
}

}  // namespace hadal
