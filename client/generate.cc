#include "client/generate.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "client/connection.h"
#include "hadal/v1/chat.grpc.pb.h"
#include "hadal/v1/generate.grpc.pb.h"

namespace hadal {
namespace {

// What the events of one stream add up to.
struct Answer {
  std::vector<int> token_ids;
  std::vector<float> logprobs;
  nlohmann::json top_logprobs = nlohmann::json::array();
  std::vector<int> prompt_token_ids;
  nlohmann::json prompt_logprobs;
  std::string text;
  v1::FinishReason finish_reason = v1::FINISH_REASON_UNSPECIFIED;
  v1::Usage usage;
};

nlohmann::json ToJson(const v1::TopLogprobs& top) {
  nlohmann::json out = nlohmann::json::array();
  for (const v1::TokenLogprob& entry : top.entries()) {
    out.push_back({{"token_id", entry.token_id()}, {"logprob", entry.logprob()}});
  }
  return out;
}

// What is written while it comes.
enum class Printed { kText, kTokenIds, kNothing };

void AddDelta(const v1::Delta& delta, Printed print, Answer* answer) {
  answer->text += delta.text();
  answer->token_ids.insert(answer->token_ids.end(), delta.token_ids().begin(), delta.token_ids().end());
  answer->logprobs.insert(answer->logprobs.end(), delta.logprobs().begin(), delta.logprobs().end());
  for (const v1::TopLogprobs& top : delta.top_logprobs()) answer->top_logprobs.push_back(ToJson(top));
  if (print == Printed::kText) std::fwrite(delta.text().data(), 1, delta.text().size(), stdout);
  if (print == Printed::kTokenIds) {
    int before = static_cast<int>(answer->token_ids.size()) - delta.token_ids_size();
    for (const int id : delta.token_ids()) fmt::print("{}{}", before++ > 0 ? " " : "", id);
  }
  std::fflush(stdout);
}

void AddEvent(const v1::Event& event, Printed print, Answer* answer) {
  switch (event.event_case()) {
    case v1::Event::kAccepted:
      answer->prompt_token_ids.assign(event.accepted().prompt_token_ids().begin(),
                                      event.accepted().prompt_token_ids().end());
      break;
    case v1::Event::kPromptLogprobs:
      answer->prompt_logprobs = nlohmann::json::array({nullptr});
      for (float logprob : event.prompt_logprobs().logprobs()) {
        answer->prompt_logprobs.push_back(logprob);
      }
      break;
    case v1::Event::kDelta: AddDelta(event.delta(), print, answer); break;
    case v1::Event::kFinished: answer->finish_reason = event.finished().reason(); break;
    case v1::Event::kSummary: answer->usage = event.summary().usage(); break;
    case v1::Event::EVENT_NOT_SET: break;
  }
}

Status ReadAll(grpc::ClientReader<v1::Event>* reader, const GenerateOptions& options, Printed print,
               Answer* answer) {
  WaitNotice notice(options.request.server);
  v1::Event event;
  while (reader->Read(&event)) {
    if (!event.has_accepted()) notice.Heard();
    AddEvent(event, print, answer);
  }
  return FromGrpc(reader->Finish(), options.request.server, options.request.timeout_s);
}

v1::OutputOptions ToOutputOptions(const GenerateOptions& options, Printed print) {
  v1::OutputOptions output;
  if (options.logprobs) {
    output.set_logprobs(*options.logprobs);
  } else if (options.json) {
    output.set_logprobs(0);
  }
  output.set_prompt_logprobs(options.prompt_logprobs);
  output.set_return_token_ids(print != Printed::kText);
  return output;
}

Status Call(const GenerateOptions& options, Printed print, Answer* answer) {
  const auto channel = OpenChannel(options.request.server);
  grpc::ClientContext context;
  context.set_deadline(DeadlineAfter(options.request.timeout_s));
  if (options.chat) {
    v1::ChatRequest request;
    v1::ChatMessage* message = request.add_messages();
    message->set_role(v1::ROLE_USER);
    message->set_content(TextOrStdin(*options.chat));
    *request.mutable_sampling() = ToSamplingOptions(options.request);
    *request.mutable_output() = ToOutputOptions(options, print);
    const auto stub = v1::ChatService::NewStub(channel);
    return ReadAll(stub->Chat(&context, request).get(), options, print, answer);
  }
  v1::GenerateRequest request;
  if (options.prompt) {
    request.set_text(TextOrStdin(*options.prompt));
  } else {
    request.mutable_token_ids()->mutable_ids()->Add(options.token_ids.begin(), options.token_ids.end());
  }
  *request.mutable_sampling() = ToSamplingOptions(options.request);
  *request.mutable_output() = ToOutputOptions(options, print);
  const auto stub = v1::GenerateService::NewStub(channel);
  return ReadAll(stub->Generate(&context, request).get(), options, print, answer);
}

nlohmann::json ToJson(const Answer& answer, const GenerateOptions& options) {
  nlohmann::json out = {
      {"token_ids", answer.token_ids},
      {"logprobs", answer.logprobs},
      {"prompt_token_ids", answer.prompt_token_ids},
      {"prompt_logprobs", answer.prompt_logprobs},
      {"text", answer.text},
      {"finish_reason", answer.finish_reason == v1::FINISH_REASON_STOP ? "stop" : "length"},
      {"usage",
       {{"prompt_tokens", answer.usage.prompt_tokens()},
        {"cached_tokens", answer.usage.cached_tokens()},
        {"completion_tokens", answer.usage.completion_tokens()}}}};
  // A prompt of one token has no log-probabilities to send.
  if (options.prompt_logprobs && answer.prompt_logprobs.is_null()) out["prompt_logprobs"] = {nullptr};
  if (options.logprobs.value_or(0) > 0) out["top_logprobs"] = answer.top_logprobs;
  return out;
}

}  // namespace

Status RunGenerate(const GenerateOptions& options) {
  const std::string& server = options.request.server;
  if (options.wait_s > 0) HADAL_RETURN_IF_ERROR(WaitUntilReady(server, options.wait_s));
  Printed print = options.json ? Printed::kNothing : Printed::kText;
  if (print == Printed::kText && !options.token_ids.empty()) {
    HADAL_ASSIGN_OR_RETURN(const v1::GetModelResponse model, GetModel(server));
    if (!model.has_tokenizer()) print = Printed::kTokenIds;
  }
  Answer answer;
  HADAL_RETURN_IF_ERROR(Call(options, print, &answer));
  if (options.json) {
    fmt::print("{}\n", ToJson(answer, options).dump());
  } else {
    fmt::print("\n");
  }
  return OkStatus();
}

}  // namespace hadal
