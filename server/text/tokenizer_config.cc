#include "common/file.h"
#include "server/text/json_fields.h"
#include "server/text/tokenizer_json.h"

namespace hadal {
namespace {

using nlohmann::json;

constexpr std::string_view kFile = "tokenizer_config.json";

// "x" or {"content": "x", ...}.
StatusOr<std::string> ReadTokenName(const json& root, const char* key) {
  const json* token = Member(root, key);
  if (token == nullptr) return std::string();
  if (token->is_object()) return StringField(*token, "content", FieldPath(kFile, key));
  return StringField(root, key, kFile);
}

// A string, or a list of named ones of which "default" is meant.
StatusOr<std::string> ReadTemplate(const json& root) {
  const json* entry = Member(root, "chat_template");
  if (entry == nullptr) return std::string();
  if (!entry->is_array()) return StringField(root, "chat_template", kFile);
  const std::string where = FieldPath(kFile, "chat_template");
  for (const json& named : *entry) {
    HADAL_ASSIGN_OR_RETURN(const std::string name, StringField(named, "name", where));
    if (name == "default") return StringField(named, "template", where);
  }
  return std::string();
}

}  // namespace

StatusOr<TokenizerConfig> ParseTokenizerConfig(std::string_view config_json) {
  TokenizerConfig config;
  if (config_json.empty()) return config;
  HADAL_ASSIGN_OR_RETURN(const json root, ParseJson(config_json, kFile));
  if (!root.is_object()) return InvalidArgument("{}: must be an object", kFile);
  HADAL_ASSIGN_OR_RETURN(config.bos_token, ReadTokenName(root, "bos_token"));
  HADAL_ASSIGN_OR_RETURN(config.chat_template, ReadTemplate(root));
  if (Member(root, "add_bos_token") != nullptr) {
    HADAL_ASSIGN_OR_RETURN(config.add_bos, BoolField(root, "add_bos_token", false, kFile));
  } else if (const json* name = Member(root, "tokenizer_class");
             name != nullptr && (*name == "LlamaTokenizer" || *name == "LlamaTokenizerFast")) {
    config.add_bos = true;  // that class's default
  }
  return config;
}

}  // namespace hadal
