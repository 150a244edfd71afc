#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <utility>

#include "common/clock.h"
#include "server/engine/engine.h"
#include "server/frontend/answer.h"
#include "server/frontend/event_writer.h"
#include "server/frontend/request_builder.h"
#include "server/frontend/served_model.h"
#include "server/frontend/wire.h"
#include "server/frontend/work_queue.h"

namespace hadal {

struct IntakeLimits {
  size_t queued_requests = 4096;
  size_t queued_bytes = 256 << 20;  // of queued requests together
  UnreadLimits unread;
};

// The way of a request from its bytes to the engine: gRPC's threads only queue it; one thread parses,
// validates, encodes and submits, another writes the answers.
class Intake {
 public:
  // Pointers outlive the intake.
  Intake(const ServedModel* model, Engine* engine, const Clock* clock,
         const IntakeLimits& limits = {});

  // The reactor of a call whose request is a `Wire` message and whose answer is a stream of events.
  template <typename Wire>
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Stream(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request) {
    const uint64_t id = engine_->NextRequestId();
    auto call = MakeStreamWriter(context, limits_.unread, CancelOf(id));
    Take<Wire>(id, *request, DeadlineUs(*context), call.writer);
    return call.reactor;
  }

  // The same for a call that is answered at once with a Completion.
  template <typename Wire>
  grpc::ServerUnaryReactor* Once(grpc::CallbackServerContext* context,
                                 const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
    const uint64_t id = engine_->NextRequestId();
    auto call = MakeCompletionWriter(response, CancelOf(id));
    Take<Wire>(id, *request, DeadlineUs(*context), call.writer);
    return call.reactor;
  }

  // The reactor of a call that needs no engine: `work` fills an Out from an In on the intake's thread.
  template <typename In, typename Out>
  grpc::ServerUnaryReactor* Compute(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* request, grpc::ByteBuffer* response,
                                    Status (*work)(const In&, const ServedModel&, Out*)) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    const bool queued = Queue(request->Length(), [this, context, request, response, reactor, work] {
      if (context->IsCancelled()) return reactor->Finish(grpc::Status::CANCELLED);
      In in;
      Out out;
      Status status = ParseMessage(*request, &in);
      if (status.ok()) status = work(in, *model_, &out);
      if (status.ok()) *response = SerialiseMessage(out);
      reactor->Finish(ToGrpc(status));
    });
    if (!queued) reactor->Finish(ToGrpc(TooMany()));
    return reactor;
  }

  // Calls of Stream and Once that have not ended: their answer is still made, or still read.
  int open_calls() const { return open_calls_; }

  // Handles what waits, then ends both threads.
  void Stop();

 private:
  // What a writer calls to cancel its request. The call is open for as long as the writer lives.
  std::function<void()> CancelOf(uint64_t id);
  // `work` will run on the intake's thread. False: too many requests wait, or too many `bytes`.
  bool Queue(size_t bytes, std::function<void()> work);
  Status TooMany() const;
  // Of the engine's clock; INT64_MAX: none, or years away.
  int64_t DeadlineUs(const grpc::CallbackServerContext& context) const;

  template <typename Wire>
  void Take(uint64_t id, const grpc::ByteBuffer& bytes, int64_t deadline_us,
            const std::shared_ptr<EventWriter>& writer) {
    const bool queued = Queue(bytes.Length(), [this, id, bytes, deadline_us, writer] {
      if (writer->cancelled()) return;
      Wire wire;
      Status status = ParseMessage(bytes, &wire);
      if (status.ok()) status = Submit(id, deadline_us, BuildRequest(wire, *model_), writer);
      if (!status.ok()) Refuse(id, status, writer.get());
    });
    if (!queued) Refuse(id, TooMany(), writer.get());
  }

  Status Submit(uint64_t id, int64_t deadline_us, StatusOr<BuiltRequest> built,
                const std::shared_ptr<EventWriter>& writer);
  static void Refuse(uint64_t id, const Status& status, EventWriter* writer);

  const ServedModel* const model_;
  Engine* const engine_;
  const Clock* const clock_;
  const IntakeLimits limits_;
  std::atomic<size_t> queued_bytes_ = 0;
  std::atomic<int> open_calls_ = 0;
  AnswerQueue answers_;
  WorkQueue<std::function<void()>> requests_;
};

}  // namespace hadal
