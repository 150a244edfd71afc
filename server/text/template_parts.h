#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/text/chat_template.h"

namespace hadal {

inline constexpr std::string_view kBeginOfSentence = "<｜begin▁of▁sentence｜>";
inline constexpr std::string_view kEndOfSentence = "<｜end▁of▁sentence｜>";
inline constexpr std::string_view kUserMark = "<｜User｜>";
inline constexpr std::string_view kAssistantMark = "<｜Assistant｜>";
inline constexpr std::string_view kThinkBegin = "<think>";
inline constexpr std::string_view kThinkEnd = "</think>";
inline constexpr std::string_view kImStart = "<|im_start|>";
inline constexpr std::string_view kImEnd = "<|im_end|>";

// Collects the pieces of a rendering. Empty pieces are left out.
class PieceList {
 public:
  PieceList& Template(std::string_view text) { return Append(text, true); }
  PieceList& User(std::string_view text) { return Append(text, false); }
  std::vector<RenderedPiece> Take() { return std::move(pieces_); }

 private:
  PieceList& Append(std::string_view text, bool is_template) {
    if (!text.empty()) pieces_.push_back({std::string(text), is_template});
    return *this;
  }
  std::vector<RenderedPiece> pieces_;
};

// INVALID_ARGUMENT for no messages and for content that is not UTF-8.
Status CheckTurns(const std::vector<ChatTurn>& turns);

// `name` is one of the "deepseek-" names.
std::unique_ptr<ChatTemplate> MakeDeepseekTemplate(std::string_view name);
// With the default system prompt that the model's own template text states, if it does.
std::unique_ptr<ChatTemplate> MakeChatmlTemplate(std::string_view model_template);

}  // namespace hadal
