// Renders the conversations of a file, for compare_chat_templates.py, which holds the answers
// against Jinja and Hugging Face tokenizers.
//
//   chat_template_compare CASES ANSWERS
//
// CASES: JSON {tokenizer: path of tokenizer.json, chat_template: text, conversations: [{template:
// name, thinking, add_generation_prompt, messages: [{role, content}]}]}; a name "" takes the
// template that the text is recognised as. ANSWERS: a JSON list of {name, text, ids}.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "common/check.h"
#include "server/text/chat_template.h"

namespace hadal {
namespace {

using nlohmann::json;

std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

template <typename T>
T Get(StatusOr<T> result) {
  HADAL_CHECK(result.ok(), "{}", result.status().message());
  return std::move(*result);
}

ChatRole RoleOf(const std::string& name) {
  if (name == "system") return ChatRole::kSystem;
  return name == "user" ? ChatRole::kUser : ChatRole::kAssistant;
}

json Render(const json& conversation, const Tokenizer& tokenizer) {
  const std::string name = conversation["template"];
  const auto chat_template =
      Get(name.empty() ? DetectChatTemplate(tokenizer) : MakeChatTemplate(name, tokenizer));
  std::vector<ChatTurn> turns;
  for (const json& message : conversation["messages"]) {
    turns.push_back({RoleOf(message["role"]), message["content"]});
  }
  const auto pieces = Get(chat_template->Render(turns, conversation["thinking"],
                                                conversation["add_generation_prompt"]));
  std::string text;
  for (const RenderedPiece& piece : pieces) text += piece.text;
  return {
      {"name", chat_template->name()}, {"text", text}, {"ids", EncodeRendered(pieces, tokenizer)}};
}

void Answer(const char* cases_path, const char* answers_path) {
  const json cases = json::parse(ReadAll(cases_path));
  const json config = {{"chat_template", cases["chat_template"]}};
  const auto tokenizer = Get(Tokenizer::Parse(ReadAll(cases["tokenizer"]), config.dump()));
  json answers = json::array();
  for (const json& conversation : cases["conversations"]) {
    answers.push_back(Render(conversation, *tokenizer));
  }
  std::ofstream(answers_path, std::ios::binary) << answers.dump();
}

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: chat_template_compare CASES ANSWERS\n");
    return 2;
  }
  hadal::Answer(argv[1], argv[2]);
  return 0;
}
