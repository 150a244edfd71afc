#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "server/text/tokenizer.h"

namespace hadal {

enum class ChatRole { kSystem, kUser, kAssistant };

struct ChatTurn {
  ChatRole role = ChatRole::kUser;
  std::string content;
};

// A template's output: pieces that are the template's own, each one control token or plain text,
// and pieces that are users' text, in which control tokens never count.
struct RenderedPiece {
  std::string text;
  bool is_template = false;
};

// One of the known templates. Immutable; thread-safe.
class ChatTemplate {
 public:
  virtual ~ChatTemplate() = default;
  virtual std::string_view name() const = 0;
  // INVALID_ARGUMENT naming messages[i] for what the template cannot render, or `thinking` when it
  // is asked of a template that has no such choice.
  virtual StatusOr<std::vector<RenderedPiece>> Render(const std::vector<ChatTurn>& turns,
                                                      bool thinking,
                                                      bool add_generation_prompt) const = 0;
};

// "deepseek-v2", "deepseek-v3", "deepseek-v3-0324", "deepseek-r1", "deepseek-r1-0528",
// "deepseek-v3.1", "chatml".
std::vector<std::string_view> ChatTemplateNames();

// By name. INVALID_ARGUMENT lists the names, or names the control token that the model lacks.
StatusOr<std::unique_ptr<ChatTemplate>> MakeChatTemplate(std::string_view name,
                                                         const Tokenizer& tokenizer);
// From the model's own template text and tokens; FAILED_PRECONDITION when none fits, naming the
// option that chooses one.
StatusOr<std::unique_ptr<ChatTemplate>> DetectChatTemplate(const Tokenizer& tokenizer);

// The ids of the whole text, as if encoded at once, except that control tokens count in the
// template's pieces only. Text between control tokens is encoded together, whoever wrote it,
// because that is what the model was trained on. REQUIRES: valid UTF-8.
std::vector<int32_t> EncodeRendered(const std::vector<RenderedPiece>& pieces,
                                    const Tokenizer& tokenizer);

}  // namespace hadal
