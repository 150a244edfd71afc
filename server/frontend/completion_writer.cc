#include <mutex>
#include <utility>

#include "server/frontend/event_writer.h"
#include "server/frontend/wire.h"

namespace hadal {
namespace {

class CompletionWriter final : public EventWriter,
                               public grpc::ServerUnaryReactor,
                               public std::enable_shared_from_this<CompletionWriter> {
 public:
  CompletionWriter(grpc::ByteBuffer* response, std::function<void()> on_cancel)
      : response_(response), on_cancel_(std::move(on_cancel)) {}

  void KeepAliveUntilDone() { self_ = shared_from_this(); }

  void Write(v1::Event event) override {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    switch (event.event_case()) {
      case v1::Event::kAccepted: completion_.mutable_accepted()->Swap(event.mutable_accepted()); break;
      case v1::Event::kPromptLogprobs:
        completion_.mutable_prompt_logprobs()->Swap(event.mutable_prompt_logprobs());
        break;
      case v1::Event::kDelta: AppendDelta(event.delta(), completion_.mutable_output()); break;
      case v1::Event::kFinished: completion_.mutable_finished()->Swap(event.mutable_finished()); break;
      case v1::Event::kSummary: completion_.mutable_summary()->Swap(event.mutable_summary()); break;
      case v1::Event::EVENT_NOT_SET: break;
    }
  }

  void Finish(const Status& status) override {
    {
      std::lock_guard lock(mutex_);
      if (std::exchange(ended_, true)) return;
      if (status.ok()) *response_ = SerialiseMessage(completion_);
    }
    grpc::ServerUnaryReactor::Finish(ToGrpc(status));
  }

  void OnCancel() override {
    cancelled_ = true;
    on_cancel_();
    Finish({StatusCode::kCancelled, "the client cancelled"});
  }

  void OnDone() override { self_.reset(); }

 private:
  grpc::ByteBuffer* const response_;
  const std::function<void()> on_cancel_;
  std::shared_ptr<CompletionWriter> self_;  // until OnDone
  std::mutex mutex_;
  v1::Completion completion_;  // guarded by mutex_
  bool ended_ = false;         // guarded by mutex_
};

}  // namespace

CallWriter<grpc::ServerUnaryReactor> MakeCompletionWriter(grpc::ByteBuffer* response,
                                                          std::function<void()> on_cancel) {
  auto writer = std::make_shared<CompletionWriter>(response, std::move(on_cancel));
  writer->KeepAliveUntilDone();
  return {writer, writer.get()};
}

}  // namespace hadal
