#include "server/frontend/answer.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

namespace hadal {
namespace {

double Milliseconds(int64_t from_us, int64_t to_us) {
  return from_us == 0 || to_us == 0 ? 0 : static_cast<double>(std::max<int64_t>(0, to_us - from_us)) / 1e3;
}

v1::Event MakeSummary(const RequestTiming& t, int32_t prompt_tokens, int32_t completion_tokens) {
  v1::Event event;
  v1::Summary* summary = event.mutable_summary();
  summary->mutable_usage()->set_prompt_tokens(prompt_tokens);
  summary->mutable_usage()->set_cached_tokens(t.cached_tokens);
  summary->mutable_usage()->set_completion_tokens(completion_tokens);
  summary->set_queue_ms(Milliseconds(t.arrival_us, t.scheduled_us));
  summary->set_prefill_ms(Milliseconds(t.scheduled_us, t.first_token_us));
  summary->set_decode_ms(Milliseconds(t.first_token_us, t.last_token_us));
  return event;
}

void AddTop(const std::vector<TokenLogprob>& top, v1::TopLogprobs* out) {
  for (const TokenLogprob& entry : top) {
    v1::TokenLogprob* to = out->add_entries();
    to->set_token_id(entry.token);
    to->set_logprob(entry.logprob);
  }
}

}  // namespace

Answer::Answer(BuiltRequest* built, std::shared_ptr<EventWriter> writer, const Tokenizer* tokenizer,
               Engine* engine, AnswerQueue* queue)
    : id_(built->request.id),
      options_(built->answer),
      writer_(std::move(writer)),
      tokenizer_(tokenizer),
      engine_(engine),
      queue_(queue),
      accepted_(std::move(built->accepted)),
      decoder_(tokenizer, true),
      stops_(options_.stop),
      prompt_tokens_(static_cast<int32_t>(built->request.prompt.size())) {}

void Answer::OnEvent(RequestEvent event) {
  std::unique_lock lock(mutex_);
  events_.push_back(std::move(event));
  const bool first = events_.size() == 1;
  lock.unlock();
  if (first) queue_->Post(shared_from_this());
}

void Answer::HandleEvents() {
  std::vector<RequestEvent> events;
  {
    std::lock_guard lock(mutex_);
    events.swap(events_);
  }
  if (finished_) return;
  if (accepted_) {
    v1::Event event;
    event.mutable_accepted()->Swap(&*accepted_);
    writer_->Write(std::move(event));
    accepted_.reset();
  }
  v1::Delta delta;
  for (const RequestEvent& event : events) {
    Handle(event, &delta);
    if (finished_) return;
  }
  WriteDelta(&delta);
}

void Answer::Handle(const RequestEvent& event, v1::Delta* delta) {
  if (!event.prompt_logprobs.empty()) {
    v1::Event out;
    out.mutable_prompt_logprobs()->mutable_logprobs()->Add(event.prompt_logprobs.begin(),
                                                           event.prompt_logprobs.end());
    writer_->Write(std::move(out));
  }
  for (const GeneratedToken& token : event.tokens) {
    AddToken(token, delta);
    if (!stop_) continue;
    engine_->Cancel(id_);
    return Finish(v1::FINISH_REASON_STOP, event, delta);
  }
  if (!event.finish) return;
  switch (event.finish->reason) {
    case FinishReason::kStop: return Finish(v1::FINISH_REASON_STOP, event, delta);
    case FinishReason::kLength: return Finish(v1::FINISH_REASON_LENGTH, event, delta);
    case FinishReason::kFailed:
      finished_ = true;
      WriteDelta(delta);
      spdlog::info("request {}: {} after {} tokens", id_, event.finish->status.ToString(),
                   completion_tokens_);
      writer_->Finish(event.finish->status);
  }
}

void Answer::AddToken(const GeneratedToken& token, v1::Delta* delta) {
  ++completion_tokens_;
  if (options_.token_ids) delta->add_token_ids(token.token);
  if (options_.logprobs) delta->add_logprobs(token.logprob);
  if (!token.top.empty()) AddTop(token.top, delta->add_top_logprobs());
  if (tokenizer_ == nullptr) return;
  StopMatcher::Output output = stops_.Push(decoder_.Push(token.token));
  delta->mutable_text()->append(output.text);
  stop_ = std::move(output.match);
}

// What was held back because it could have become a character or a stop string.
void Answer::Flush(v1::Delta* delta) {
  if (tokenizer_ == nullptr || stop_) return;
  StopMatcher::Output output = stops_.Push(decoder_.Finish());
  delta->mutable_text()->append(output.text);
  if (!output.match) delta->mutable_text()->append(stops_.Finish());
}

void Answer::Finish(v1::FinishReason reason, const RequestEvent& event, v1::Delta* delta) {
  finished_ = true;
  Flush(delta);
  WriteDelta(delta);
  v1::Event out;
  out.mutable_finished()->set_reason(reason);
  if (stop_) {
    out.mutable_finished()->set_stop(*stop_);
  } else if (event.finish && event.finish->stop_token_id) {
    out.mutable_finished()->set_stop_token_id(*event.finish->stop_token_id);
  }
  writer_->Write(std::move(out));
  writer_->Write(MakeSummary(event.timing, prompt_tokens_, completion_tokens_));
  writer_->Finish(OkStatus());
  const RequestTiming& t = event.timing;
  spdlog::info("request {}: {} prompt tokens ({} cached), {} generated, {}; first token {:.0f} ms, all "
               "{:.0f} ms", id_, prompt_tokens_, t.cached_tokens, completion_tokens_,
               reason == v1::FINISH_REASON_STOP ? "stop" : "length",
               Milliseconds(t.arrival_us, t.first_token_us), Milliseconds(t.arrival_us, t.last_token_us));
}

void Answer::WriteDelta(v1::Delta* delta) {
  if (delta->text().empty() && delta->token_ids().empty() && delta->logprobs().empty()) return;
  v1::Event event;
  event.mutable_delta()->Swap(delta);
  writer_->Write(std::move(event));
}

}  // namespace hadal
