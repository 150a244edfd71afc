#include <grpcpp/alarm.h>

#include <deque>
#include <mutex>
#include <string>
#include <utility>

#include "server/frontend/event_writer.h"
#include "server/frontend/wire.h"

namespace hadal {
namespace {

// gRPC operations are started outside the lock: their reactions may run on the same thread.
class StreamWriter final : public EventWriter,
                           public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                           public std::enable_shared_from_this<StreamWriter> {
 public:
  StreamWriter(grpc::CallbackServerContext* context, const UnreadLimits& limits,
               std::function<void()> on_cancel)
      : limits_(limits), on_cancel_(std::move(on_cancel)), context_(context) {}

  void KeepAliveUntilDone() { self_ = shared_from_this(); }

  void Write(v1::Event event) override {
    bool slow = false;
    {
      std::lock_guard lock(mutex_);
      if (ended_) return;
      Buffer(std::move(event));
      slow = buffered_bytes_ > limits_.bytes;
    }
    if (slow) return EndSlowStream();
    Advance();
  }

  void Finish(const Status& status) override {
    {
      std::lock_guard lock(mutex_);
      if (std::exchange(ended_, true)) return;
      status_ = ToGrpc(status);
    }
    Advance();
  }

  void OnWriteDone(bool ok) override {
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
      if (!ok) DropEvents();
    }
    Advance();
  }

  void OnCancel() override {
    cancelled_ = true;
    {
      std::lock_guard lock(mutex_);
      DropEvents();
      if (!std::exchange(ended_, true)) status_ = grpc::Status::CANCELLED;
    }
    on_cancel_();
    Advance();
  }

  void OnDone() override {
    {
      std::lock_guard lock(context_mutex_);
      context_ = nullptr;
    }
    self_.reset();
  }

 private:
  struct Waiting {
    v1::Event event;
    size_t bytes;  // of what was put together in it, as it came; the whole is smaller
  };

  // REQUIRES: mutex_ held.
  void Buffer(v1::Event event) {
    const size_t bytes = event.ByteSizeLong();
    buffered_bytes_ += bytes;
    if (event.has_delta() && !events_.empty() && events_.back().event.has_delta()) {
      AppendDelta(event.delta(), events_.back().event.mutable_delta());
      events_.back().bytes += bytes;
    } else {
      events_.push_back({std::move(event), bytes});
    }
  }

  // REQUIRES: mutex_ held.
  void DropEvents() {
    events_.clear();
    buffered_bytes_ = 0;
  }

  // Starts the next write, or the end of the stream when all is written.
  void Advance() {
    bool write = false;
    {
      std::lock_guard lock(mutex_);
      if (writing_ || finished_) return;
      if (!events_.empty()) {
        bytes_ = SerialiseMessage(events_.front().event);
        buffered_bytes_ -= events_.front().bytes;
        events_.pop_front();
        writing_ = write = true;
      } else if (ended_) {
        finished_ = true;
      } else {
        return;
      }
    }
    if (write) {
      StartWrite(&bytes_);
    } else {
      grpc::ServerWriteReactor<grpc::ByteBuffer>::Finish(status_);
    }
  }

  void EndSlowStream() {
    {
      std::lock_guard lock(mutex_);
      if (std::exchange(ended_, true)) return;
      DropEvents();
      status_ = {grpc::StatusCode::RESOURCE_EXHAUSTED,
                 "the client does not read its answer: too much of it is waiting"};
    }
    cancelled_ = true;
    on_cancel_();
    alarm_.Set(std::chrono::system_clock::now() + limits_.grace, [weak = weak_from_this()](bool) {
      if (const auto self = weak.lock()) self->GiveUp();
    });
    Advance();
  }

  // Without this, whoever never reads would keep the call and what is being written for ever.
  void GiveUp() {
    std::lock_guard lock(context_mutex_);
    if (context_ != nullptr) context_->TryCancel();
  }

  const UnreadLimits limits_;
  const std::function<void()> on_cancel_;
  std::shared_ptr<StreamWriter> self_;  // until OnDone
  grpc::ByteBuffer bytes_;              // being written
  grpc::Alarm alarm_;                   // set once at most
  std::recursive_mutex context_mutex_;  // recursive: TryCancel may lead to OnDone on this thread
  // Guarded by context_mutex_; null: the call is over.
  grpc::CallbackServerContext* context_;
  std::mutex mutex_;
  // All below are guarded by mutex_.
  std::deque<Waiting> events_;
  size_t buffered_bytes_ = 0;  // of all in events_
  bool writing_ = false;
  bool ended_ = false;     // no event follows
  bool finished_ = false;  // gRPC was told
  grpc::Status status_;    // constant once ended_
};

}  // namespace

CallWriter<grpc::ServerWriteReactor<grpc::ByteBuffer>> MakeStreamWriter(
    grpc::CallbackServerContext* context, const UnreadLimits& limits, std::function<void()> on_cancel) {
  auto writer = std::make_shared<StreamWriter>(context, limits, std::move(on_cancel));
  writer->KeepAliveUntilDone();
  return {writer, writer.get()};
}

void AppendDelta(const v1::Delta& delta, v1::Delta* sum) {
  const std::string text = sum->text() + delta.text();
  sum->MergeFrom(delta);  // repeated fields are appended, text is replaced
  sum->set_text(text);
}

}  // namespace hadal
