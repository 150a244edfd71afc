#include "server/text/chat_template.h"

#include <fmt/ranges.h>

#include "common/utf8.h"
#include "server/text/json_fields.h"
#include "server/text/template_parts.h"

namespace hadal {
namespace {

struct KnownTemplate {
  std::string_view name;
  std::vector<std::string_view> control_tokens;  // without which it makes no sense
};

const std::vector<KnownTemplate>& KnownTemplates() {
  static const std::vector<KnownTemplate> known = {
      {"deepseek-v2", {kBeginOfSentence, kEndOfSentence}},
      {"deepseek-v3", {kBeginOfSentence, kEndOfSentence, kUserMark, kAssistantMark}},
      {"deepseek-v3-0324", {kBeginOfSentence, kEndOfSentence, kUserMark, kAssistantMark}},
      {"deepseek-r1", {kBeginOfSentence, kEndOfSentence, kUserMark, kAssistantMark, kThinkBegin}},
      {"deepseek-r1-0528", {kBeginOfSentence, kEndOfSentence, kUserMark, kAssistantMark}},
      {"deepseek-v3.1",
       {kBeginOfSentence, kEndOfSentence, kUserMark, kAssistantMark, kThinkBegin, kThinkEnd}},
      {"chatml", {kImStart, kImEnd}},
  };
  return known;
}

// By the traits in which the known template texts differ; empty: none fits.
std::string_view DetectName(const Tokenizer& tokenizer) {
  const std::string& text = tokenizer.chat_template();
  const auto has = [&](std::string_view part) { return text.find(part) != std::string::npos; };
  if (has(kImStart)) return "chatml";
  if (!has(kAssistantMark)) return has("User: ") && has("Assistant:") ? "deepseek-v2" : "";
  if (has("thinking is defined") || has("not thinking") || has("and thinking")) {
    return "deepseek-v3.1";
  }
  if (has("<｜Assistant｜><think>")) return "deepseek-r1";
  if (!has(kThinkEnd)) return "deepseek-v3";
  // The two render alike; what tells the models apart is that <think> is a token of R1's.
  return tokenizer.ControlId(kThinkBegin) ? "deepseek-r1-0528" : "deepseek-v3-0324";
}

}  // namespace

std::vector<std::string_view> ChatTemplateNames() {
  std::vector<std::string_view> names;
  for (const KnownTemplate& known : KnownTemplates()) names.push_back(known.name);
  return names;
}

StatusOr<std::unique_ptr<ChatTemplate>> MakeChatTemplate(std::string_view name,
                                                         const Tokenizer& tokenizer) {
  for (const KnownTemplate& known : KnownTemplates()) {
    if (known.name != name) continue;
    for (const std::string_view token : known.control_tokens) {
      if (tokenizer.ControlId(token)) continue;
      return InvalidArgument(
          "chat template {}: needs the control token {}, which the model's "
          "tokenizer lacks; choose another template",
          name, token);
    }
    return name == "chatml" ? MakeChatmlTemplate(tokenizer.chat_template())
                            : MakeDeepseekTemplate(name);
  }
  return InvalidArgument("chat template {}: is not known; choose one of {}", QuoteForMessage(name),
                         fmt::join(ChatTemplateNames(), ", "));
}

StatusOr<std::unique_ptr<ChatTemplate>> DetectChatTemplate(const Tokenizer& tokenizer) {
  const std::string_view name = DetectName(tokenizer);
  if (!name.empty()) {
    auto made = MakeChatTemplate(name, tokenizer);
    if (made.ok()) return made;
  }
  return FailedPrecondition(
      "chat_template: the model states no template that is known here; "
      "choose one with --chat-template: {}",
      fmt::join(ChatTemplateNames(), ", "));
}

Status CheckTurns(const std::vector<ChatTurn>& turns) {
  if (turns.empty()) return InvalidArgument("messages: must not be empty");
  for (size_t i = 0; i < turns.size(); ++i) {
    if (!IsValidUtf8(turns[i].content)) {
      return InvalidArgument("messages[{}].content: must be valid UTF-8", i);
    }
  }
  return OkStatus();
}

std::vector<int32_t> EncodeRendered(const std::vector<RenderedPiece>& pieces,
                                    const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  std::string text;  // since the last control token
  const auto flush = [&] {
    const std::vector<int32_t> encoded = tokenizer.EncodeText(text);
    ids.insert(ids.end(), encoded.begin(), encoded.end());
    text.clear();
  };
  for (const RenderedPiece& piece : pieces) {
    const auto control = piece.is_template ? tokenizer.ControlId(piece.text) : std::nullopt;
    if (!control) {
      text += piece.text;
      continue;
    }
    flush();
    ids.push_back(*control);
  }
  flush();
  return ids;
}

}  // namespace hadal
