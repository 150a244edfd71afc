#include "server/frontend/request_builder.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "common/utf8.h"

namespace hadal {
namespace {

constexpr int kMaxStops = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr int kMaxStopTokenIds = 64;
// Below this the division of logits by the temperature overflows; the outcome is greedy anyway.
constexpr float kLeastTemperature = 1e-5f;

uint64_t FreshSeed() {
  thread_local std::mt19937_64 engine{(uint64_t{std::random_device{}()} << 32) ^ std::random_device{}()};
  return engine();
}

Status CheckModel(const std::string& name, const ServedModel& model) {
  if (name.empty() || name == model.name) return OkStatus();
  return NotFound("model: \"{}\" is not served here; this server serves \"{}\"",
                  DisplayText(name, 100), model.name);
}

template <typename T>
T Pick(bool given, T value, bool has_default, T model_default, T otherwise) {
  return given ? value : has_default ? model_default : otherwise;
}

StatusOr<SamplingParams> BuildSampling(const v1::SamplingOptions& wire,
                                       const v1::SamplingOptions& defaults) {
  SamplingParams sampling;
  sampling.temperature = Pick(wire.has_temperature(), wire.temperature(),
                              defaults.has_temperature(), defaults.temperature(), 1.0f);
  sampling.top_p =
      Pick(wire.has_top_p(), wire.top_p(), defaults.has_top_p(), defaults.top_p(), 1.0f);
  sampling.top_k = Pick(wire.has_top_k(), wire.top_k(), defaults.has_top_k(), defaults.top_k(), 0);
  sampling.min_p = wire.min_p();
  sampling.seed = wire.has_seed() ? wire.seed() : FreshSeed();
  if (!std::isfinite(sampling.temperature) || sampling.temperature < 0) {
    return InvalidArgument("sampling.temperature: {} given, 0 (greedy) or more is needed",
                           sampling.temperature);
  }
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
    return InvalidArgument("sampling.top_p: {} given, more than 0 and at most 1 is needed",
                           sampling.top_p);
  }
  if (sampling.top_k < 0) {
    return InvalidArgument("sampling.top_k: {} given, 0 (off) or more is needed", sampling.top_k);
  }
  if (!(sampling.min_p >= 0 && sampling.min_p < 1)) {
    return InvalidArgument("sampling.min_p: {} given, 0 (off) or more and less than 1 is needed",
                           sampling.min_p);
  }
  if (sampling.temperature < kLeastTemperature) sampling.temperature = 0;
  return sampling;
}

Status BuildStops(const v1::SamplingOptions& wire, const ServedModel& model, BuiltRequest* built) {
  if (wire.stop_size() > kMaxStops) {
    return InvalidArgument("sampling.stop: {} strings given, at most {} are allowed",
                           wire.stop_size(), kMaxStops);
  }
  if (wire.stop_size() > 0) HADAL_RETURN_IF_ERROR(RequireTokenizer(model, "sampling.stop"));
  for (int i = 0; i < wire.stop_size(); ++i) {
    const size_t bytes = wire.stop(i).size();
    if (bytes == 0 || bytes > kMaxStopBytes) {
      return InvalidArgument("sampling.stop[{}]: {} bytes given, 1 to {} are allowed", i, bytes,
                             kMaxStopBytes);
    }
    built->answer.stop.push_back(wire.stop(i));
  }
  if (wire.stop_token_ids_size() > kMaxStopTokenIds) {
    return InvalidArgument("sampling.stop_token_ids: {} ids given, at most {} are allowed",
                           wire.stop_token_ids_size(), kMaxStopTokenIds);
  }
  HADAL_RETURN_IF_ERROR(CheckTokenIds(wire.stop_token_ids(), "sampling.stop_token_ids", model));
  auto& ids = built->request.stop_token_ids;
  ids.assign(wire.stop_token_ids().begin(), wire.stop_token_ids().end());
  if (!wire.ignore_eos()) {
    ids.insert(ids.end(), model.config.eos_ids.begin(), model.config.eos_ids.end());
  }
  return OkStatus();
}

// `what` is what the prompt is called in this request.
Status BuildLimits(const v1::SamplingOptions& wire, std::string_view what, const ServedModel& model,
                   Request* request) {
  const auto prompt = static_cast<int64_t>(request->prompt.size());
  const int64_t left = model.context_length - prompt;
  if (prompt == 0) return InvalidArgument("{}: is empty", what);
  if (left < 1) {
    return InvalidArgument("{}: {} tokens, but the context length is {}, of which an answer needs at "
                           "least 1; shorten the prompt", what, prompt, model.context_length);
  }
  if (!wire.has_max_tokens()) {
    request->max_tokens = static_cast<int32_t>(left);
    request->max_tokens_is_default = true;
    return OkStatus();
  }
  if (wire.max_tokens() < 1) {
    return InvalidArgument("sampling.max_tokens: {} given, at least 1 is needed", wire.max_tokens());
  }
  if (wire.max_tokens() > left) {
    return InvalidArgument("sampling.max_tokens: {} and the prompt's {} tokens exceed the context "
                           "length {}; at most {} are left",
                           wire.max_tokens(), prompt, model.context_length, left);
  }
  request->max_tokens = wire.max_tokens();
  return OkStatus();
}

Status BuildOutput(const v1::OutputOptions& wire, const ServedModel& model, BuiltRequest* built) {
  if (wire.has_logprobs() && (wire.logprobs() < 0 || wire.logprobs() > kMaxTopLogprobs)) {
    return InvalidArgument("output.logprobs: {} given, 0 to {} are allowed", wire.logprobs(),
                           kMaxTopLogprobs);
  }
  built->answer.logprobs = wire.has_logprobs();
  built->request.sampling.logprobs = wire.has_logprobs() ? wire.logprobs() : -1;
  built->request.prompt_logprobs = wire.prompt_logprobs();
  // Without a tokenizer ids are all there is.
  built->answer.token_ids = wire.return_token_ids() || model.tokenizer == nullptr;
  return OkStatus();
}

// Everything behind the prompt.
StatusOr<BuiltRequest> Build(std::vector<int32_t> prompt, std::string_view what,
                             const v1::SamplingOptions& sampling, const v1::OutputOptions& output,
                             const ServedModel& model) {
  BuiltRequest built;
  Request& request = built.request;
  request.prompt = std::move(prompt);
  HADAL_ASSIGN_OR_RETURN(request.sampling, BuildSampling(sampling, model.defaults));
  HADAL_RETURN_IF_ERROR(BuildStops(sampling, model, &built));
  HADAL_RETURN_IF_ERROR(BuildOutput(output, model, &built));
  HADAL_RETURN_IF_ERROR(BuildLimits(sampling, what, model, &request));
  built.accepted.set_model(model.name);
  built.accepted.set_prompt_tokens(static_cast<int32_t>(request.prompt.size()));
  built.accepted.set_seed(request.sampling.seed);
  if (built.answer.token_ids) {
    built.accepted.mutable_prompt_token_ids()->Add(request.prompt.begin(), request.prompt.end());
  }
  return built;
}

StatusOr<ChatTurn> ToTurn(const v1::ChatMessage& message, int index) {
  switch (message.role()) {
    case v1::ROLE_SYSTEM: return ChatTurn{ChatRole::kSystem, message.content()};
    case v1::ROLE_ASSISTANT: return ChatTurn{ChatRole::kAssistant, message.content()};
    case v1::ROLE_USER:
      if (message.content().empty()) {
        return InvalidArgument("messages[{}].content: is empty", index);
      }
      return ChatTurn{ChatRole::kUser, message.content()};
    default:
      return InvalidArgument("messages[{}].role: {} given, ROLE_SYSTEM, ROLE_USER or ROLE_ASSISTANT "
                             "is needed", index, static_cast<int>(message.role()));
  }
}

}  // namespace

Status RequireTokenizer(const ServedModel& model, std::string_view what) {
  if (model.tokenizer != nullptr) return OkStatus();
  return FailedPrecondition("{}: the model \"{}\" has no tokenizer files and serves token ids only; "
                            "use token_ids", what, model.name);
}

Status CheckTokenIds(const google::protobuf::RepeatedField<int32_t>& ids, std::string_view field,
                     const ServedModel& model) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < model.config.vocab_size) continue;
    return InvalidArgument("{}[{}]: {} is not an id of the vocabulary, which has {}", field, i,
                           ids[i], model.config.vocab_size);
  }
  return OkStatus();
}

StatusOr<std::vector<RenderedPiece>> RenderMessages(
    const google::protobuf::RepeatedPtrField<v1::ChatMessage>& messages, std::optional<bool> thinking,
    const ServedModel& model) {
  HADAL_RETURN_IF_ERROR(RequireTokenizer(model, "messages"));
  if (model.chat_template == nullptr) return model.no_chat_template;
  if (messages.empty()) return InvalidArgument("messages: is empty, at least one is needed");
  std::vector<ChatTurn> turns;
  for (int i = 0; i < messages.size(); ++i) {
    HADAL_ASSIGN_OR_RETURN(ChatTurn turn, ToTurn(messages[i], i));
    turns.push_back(std::move(turn));
  }
  if (turns.back().role == ChatRole::kAssistant) {
    return InvalidArgument("messages[{}].role: the last message is the assistant's own; the user's is "
                           "needed", messages.size() - 1);
  }
  return model.chat_template->Render(turns, thinking.value_or(false), true);
}

StatusOr<BuiltRequest> BuildRequest(const v1::ChatRequest& wire, const ServedModel& model) {
  HADAL_RETURN_IF_ERROR(CheckModel(wire.model(), model));
  const auto thinking = wire.has_thinking() ? std::optional(wire.thinking()) : std::nullopt;
  HADAL_ASSIGN_OR_RETURN(const auto pieces, RenderMessages(wire.messages(), thinking, model));
  return Build(EncodeRendered(pieces, *model.tokenizer), "messages", wire.sampling(), wire.output(),
               model);
}

StatusOr<BuiltRequest> BuildRequest(const v1::GenerateRequest& wire, const ServedModel& model) {
  HADAL_RETURN_IF_ERROR(CheckModel(wire.model(), model));
  if (wire.prompt_case() == v1::GenerateRequest::kTokenIds) {
    const auto& ids = wire.token_ids().ids();
    HADAL_RETURN_IF_ERROR(CheckTokenIds(ids, "token_ids.ids", model));
    return Build({ids.begin(), ids.end()}, "token_ids.ids", wire.sampling(), wire.output(), model);
  }
  if (wire.prompt_case() == v1::GenerateRequest::PROMPT_NOT_SET) {
    return InvalidArgument("prompt: text or token_ids is needed");
  }
  HADAL_RETURN_IF_ERROR(RequireTokenizer(model, "text"));
  std::vector<int32_t> prompt = model.tokenizer->EncodeText(wire.text());
  if (model.tokenizer->add_bos() && model.tokenizer->bos_id()) {
    prompt.insert(prompt.begin(), *model.tokenizer->bos_id());
  }
  return Build(std::move(prompt), "text", wire.sampling(), wire.output(), model);
}

}  // namespace hadal
