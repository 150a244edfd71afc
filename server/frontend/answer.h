#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "hadal/v1/types.pb.h"
#include "server/engine/engine.h"
#include "server/frontend/event_writer.h"
#include "server/frontend/request_builder.h"
#include "server/frontend/work_queue.h"
#include "server/text/stop_matcher.h"
#include "server/text/tokenizer.h"

namespace hadal {

class Answer;
// The thread that turns tokens into text, for all answers.
using AnswerQueue = WorkQueue<std::shared_ptr<Answer>>;

// One request's way back: the engine's events in, proto events out. Tokens become text, stop strings
// end the answer early. The engine thread only leaves its events here; the work is done by the
// thread of the queue, and events that came meanwhile are handled together.
class Answer final : public RequestSink, public std::enable_shared_from_this<Answer> {
 public:
  // `tokenizer` may be null; all pointers outlive the answer.
  Answer(BuiltRequest* built, std::shared_ptr<EventWriter> writer, const Tokenizer* tokenizer,
         Engine* engine, AnswerQueue* queue);

  void OnEvent(RequestEvent event) override;
  // Thread of the queue.
  void HandleEvents();

 private:
  void Handle(const RequestEvent& event, v1::Delta* delta);
  void AddToken(const GeneratedToken& token, v1::Delta* delta);
  void Flush(v1::Delta* delta);
  void Finish(v1::FinishReason reason, const RequestEvent& event, v1::Delta* delta);
  void WriteDelta(v1::Delta* delta);

  const uint64_t id_;
  const AnswerOptions options_;
  const std::shared_ptr<EventWriter> writer_;
  const Tokenizer* const tokenizer_;
  Engine* const engine_;
  AnswerQueue* const queue_;

  std::mutex mutex_;
  std::vector<RequestEvent> events_;  // guarded by mutex_; when not empty, this is in the queue

  // Owned by the thread of the queue.
  std::optional<v1::Accepted> accepted_;  // until it is written
  IncrementalDecoder decoder_;
  StopMatcher stops_;
  std::optional<std::string> stop_;  // the stop string that was found
  int32_t prompt_tokens_ = 0;
  int32_t completion_tokens_ = 0;
  bool finished_ = false;
};

}  // namespace hadal
