#include <optional>

#include "common/check.h"
#include "server/text/template_parts.h"

namespace hadal {
namespace {

// All system messages, in front of the conversation, as V3 and later have them.
void AppendSystemTurns(const std::vector<ChatTurn>& turns, PieceList* pieces) {
  bool first = true;
  for (const ChatTurn& turn : turns) {
    if (turn.role != ChatRole::kSystem) continue;
    if (!first) pieces->Template("\n\n");
    pieces->User(turn.content);
    first = false;
  }
}

// V2 and V2-Lite: roles in words, system messages where they occur.
class DeepseekV2Template : public ChatTemplate {
 public:
  std::string_view name() const override { return "deepseek-v2"; }

  StatusOr<std::vector<RenderedPiece>> Render(const std::vector<ChatTurn>& turns, bool thinking,
                                              bool add_generation_prompt) const override {
    HADAL_RETURN_IF_ERROR(CheckTurns(turns));
    if (thinking) return InvalidArgument("thinking: the template {} has no such choice", name());
    PieceList pieces;
    pieces.Template(kBeginOfSentence);
    for (const ChatTurn& turn : turns) {
      switch (turn.role) {
        case ChatRole::kSystem:
          pieces.User(turn.content).Template("\n\n");
          break;
        case ChatRole::kUser:
          pieces.Template("User: ").User(turn.content).Template("\n\n");
          break;
        case ChatRole::kAssistant:
          pieces.Template("Assistant: ").User(turn.content).Template(kEndOfSentence);
          break;
      }
    }
    if (add_generation_prompt) pieces.Template("Assistant:");
    return pieces.Take();
  }
};

// What of an assistant turn's <think> part stays in the history.
enum class History { kWhole, kAfterLastThink };

struct V3Style {
  std::string_view name;
  History history;
  bool opens_thinking;  // the generation prompt ends in "<think>\n"
  bool always_thinks;   // so `thinking` asks for what happens anyway
};

constexpr V3Style kV3Styles[] = {
    {"deepseek-v3", History::kWhole, false, false},
    {"deepseek-v3-0324", History::kAfterLastThink, false, false},
    {"deepseek-r1", History::kAfterLastThink, true, true},
    {"deepseek-r1-0528", History::kAfterLastThink, false, true},
};

class DeepseekV3Template : public ChatTemplate {
 public:
  explicit DeepseekV3Template(const V3Style& style) : style_(style) {}
  std::string_view name() const override { return style_.name; }

  StatusOr<std::vector<RenderedPiece>> Render(const std::vector<ChatTurn>& turns, bool thinking,
                                              bool add_generation_prompt) const override {
    HADAL_RETURN_IF_ERROR(CheckTurns(turns));
    if (thinking && !style_.always_thinks) {
      return InvalidArgument("thinking: the template {} has no such choice", name());
    }
    PieceList pieces;
    pieces.Template(kBeginOfSentence);
    AppendSystemTurns(turns, &pieces);
    for (const ChatTurn& turn : turns) {
      if (turn.role == ChatRole::kUser) pieces.Template(kUserMark).User(turn.content);
      if (turn.role == ChatRole::kAssistant) {
        pieces.Template(kAssistantMark).User(Kept(turn.content)).Template(kEndOfSentence);
      }
    }
    if (add_generation_prompt) {
      pieces.Template(kAssistantMark);
      if (style_.opens_thinking) pieces.Template(kThinkBegin).Template("\n");
    }
    return pieces.Take();
  }

 private:
  std::string_view Kept(std::string_view content) const {
    if (style_.history == History::kWhole) return content;
    const size_t end = content.rfind(kThinkEnd);
    return end == std::string_view::npos ? content : content.substr(end + kThinkEnd.size());
  }

  V3Style style_;
};

// V3.1: the assistant's mark comes with its turn, followed by whether it thinks.
class DeepseekV31Template : public ChatTemplate {
 public:
  std::string_view name() const override { return "deepseek-v3.1"; }

  StatusOr<std::vector<RenderedPiece>> Render(const std::vector<ChatTurn>& turns, bool thinking,
                                              bool add_generation_prompt) const override {
    HADAL_RETURN_IF_ERROR(CheckTurns(turns));
    PieceList pieces;
    pieces.Template(kBeginOfSentence);
    AppendSystemTurns(turns, &pieces);
    bool after_user = false;
    for (const ChatTurn& turn : turns) {
      if (turn.role == ChatRole::kUser) {
        pieces.Template(kUserMark).User(turn.content);
        after_user = true;
      } else if (turn.role == ChatRole::kAssistant) {
        if (after_user) pieces.Template(kAssistantMark).Template(kThinkEnd);
        pieces.User(AfterFirstThink(turn.content)).Template(kEndOfSentence);
        after_user = false;
      }
    }
    if (add_generation_prompt && after_user) {
      pieces.Template(kAssistantMark).Template(thinking ? kThinkBegin : kThinkEnd);
    }
    return pieces.Take();
  }

 private:
  static std::string_view AfterFirstThink(std::string_view content) {
    const size_t end = content.find(kThinkEnd);
    return end == std::string_view::npos ? content : content.substr(end + kThinkEnd.size());
  }
};

}  // namespace

std::unique_ptr<ChatTemplate> MakeDeepseekTemplate(std::string_view name) {
  if (name == "deepseek-v2") return std::make_unique<DeepseekV2Template>();
  if (name == "deepseek-v3.1") return std::make_unique<DeepseekV31Template>();
  for (const V3Style& style : kV3Styles) {
    if (style.name == name) return std::make_unique<DeepseekV3Template>(style);
  }
  HADAL_CHECK(false, "no template {}", name);
}

}  // namespace hadal
