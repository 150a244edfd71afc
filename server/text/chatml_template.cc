#include <optional>

#include "server/text/template_parts.h"

namespace hadal {
namespace {

// The text of a Jinja string literal between its quotes.
std::string Unescape(std::string_view literal) {
  std::string text;
  for (size_t i = 0; i < literal.size(); ++i) {
    if (literal[i] != '\\' || i + 1 == literal.size()) {
      text += literal[i];
      continue;
    }
    const char c = literal[++i];
    text += c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c;
  }
  return text;
}

// The system prompt of the first literal '<|im_start|>system\n...<|im_end|>' of a template, which
// renders it when the conversation brings none. A literal that ends before <|im_end|> is the frame
// of a system message that the conversation does bring.
std::optional<std::string> DefaultSystemPrompt(std::string_view model_template) {
  const std::string opening = std::string(kImStart) + "system";
  for (size_t at = model_template.find(opening); at != std::string_view::npos;
       at = model_template.find(opening, at + 1)) {
    if (at == 0) continue;
    const char quote = model_template[at - 1];
    if (quote != '\'' && quote != '"') continue;
    std::string_view rest = model_template.substr(at + opening.size());
    if (rest.starts_with("\\n")) {
      rest.remove_prefix(2);
    } else if (rest.starts_with("\n")) {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    const std::string_view literal = rest.substr(0, rest.find(kImEnd));
    size_t closing = literal.find(quote);
    while (closing != std::string_view::npos && closing > 0 && literal[closing - 1] == '\\') {
      closing = literal.find(quote, closing + 1);
    }
    if (literal.size() < rest.size() && closing == std::string_view::npos) return Unescape(literal);
  }
  return std::nullopt;
}

std::string_view RoleName(ChatRole role) {
  switch (role) {
    case ChatRole::kSystem:
      return "system";
    case ChatRole::kUser:
      return "user";
    case ChatRole::kAssistant:
      return "assistant";
  }
  return {};
}

class ChatmlTemplate : public ChatTemplate {
 public:
  explicit ChatmlTemplate(std::optional<std::string> system_prompt)
      : system_prompt_(std::move(system_prompt)) {}
  std::string_view name() const override { return "chatml"; }

  StatusOr<std::vector<RenderedPiece>> Render(const std::vector<ChatTurn>& turns, bool thinking,
                                              bool add_generation_prompt) const override {
    HADAL_RETURN_IF_ERROR(CheckTurns(turns));
    if (thinking) return InvalidArgument("thinking: the template {} has no such choice", name());
    PieceList pieces;
    if (system_prompt_ && turns.front().role != ChatRole::kSystem) {
      Open("system", &pieces);
      pieces.Template(*system_prompt_).Template(kImEnd).Template("\n");
    }
    for (const ChatTurn& turn : turns) {
      Open(RoleName(turn.role), &pieces);
      pieces.User(turn.content).Template(kImEnd).Template("\n");
    }
    if (add_generation_prompt) Open("assistant", &pieces);
    return pieces.Take();
  }

 private:
  static void Open(std::string_view role, PieceList* pieces) {
    pieces->Template(kImStart).Template(std::string(role) + "\n");
  }

  std::optional<std::string> system_prompt_;
};

}  // namespace

std::unique_ptr<ChatTemplate> MakeChatmlTemplate(std::string_view model_template) {
  return std::make_unique<ChatmlTemplate>(DefaultSystemPrompt(model_template));
}

}  // namespace hadal
