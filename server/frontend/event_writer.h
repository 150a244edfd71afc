#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>

#include "common/status.h"
#include "hadal/v1/types.pb.h"

namespace hadal {

// Where the events of one request go. All functions may be called from any thread, return at once,
// and do nothing once the call has ended.
class EventWriter {
 public:
  virtual ~EventWriter() = default;
  virtual void Write(v1::Event event) = 0;
  // The last one.
  virtual void Finish(const Status& status) = 0;
  // The client has gone, or its deadline has passed, or it reads too slowly.
  bool cancelled() const { return cancelled_; }

 protected:
  std::atomic<bool> cancelled_ = false;
};

// A writer that is also the gRPC reactor of a call. `on_cancel` runs at most once, on any thread.
template <typename Reactor>
struct CallWriter {
  std::shared_ptr<EventWriter> writer;
  Reactor* reactor;  // to be returned to gRPC; keeps `writer` alive until the call is over
};

struct UnreadLimits {
  size_t bytes = 1 << 20;                   // of one stream whose client does not read
  std::chrono::milliseconds grace{10'000};  // for that client to read its status
};

// Server stream of Events. While the client does not read, text is put together into one Delta; over
// limits.bytes the stream ends with RESOURCE_EXHAUSTED, and limits.grace later the call is cancelled if
// the client has not read even that. `context` is the call's.
CallWriter<grpc::ServerWriteReactor<grpc::ByteBuffer>> MakeStreamWriter(
    grpc::CallbackServerContext* context, const UnreadLimits& limits, std::function<void()> on_cancel);

// Unary call: a Completion at the end. `response` is the call's.
CallWriter<grpc::ServerUnaryReactor> MakeCompletionWriter(grpc::ByteBuffer* response,
                                                          std::function<void()> on_cancel);

// Adds what `delta` brings to the end of `sum`.
void AppendDelta(const v1::Delta& delta, v1::Delta* sum);

}  // namespace hadal
