#include "server/text/tokenizer_json.h"

#include <algorithm>
#include <set>

#include "common/file.h"
#include "server/text/byte_map.h"
#include "server/text/json_fields.h"

namespace hadal {
namespace {

using nlohmann::json;
using Vocabulary = std::unordered_map<std::string_view, int32_t>;  // views into the JSON

Status CheckNormalizer(const json* normalizer) {
  if (normalizer == nullptr) return OkStatus();
  const json* type = Member(*normalizer, "type");
  const json* members = Member(*normalizer, "normalizers");
  if (type != nullptr && *type == "Sequence" && members != nullptr && members->is_array() &&
      members->empty()) {
    return OkStatus();
  }
  return InvalidArgument("normalizer: only null and an empty Sequence are supported");
}

Status CheckDecoder(const json* decoder) {
  if (decoder == nullptr) return InvalidArgument("decoder: must be ByteLevel");
  HADAL_ASSIGN_OR_RETURN(const std::string type, StringField(*decoder, "type", "decoder"));
  if (type == "ByteLevel") return OkStatus();
  return InvalidArgument("decoder.type: {} is not supported; ByteLevel is", QuoteForMessage(type));
}

// Tokens that a post-processor adds are added by the chat template here; all that matters of it is
// whether it begins with one. Leaves `leading` alone when it does not.
Status ReadPostProcessor(const json* processor, const std::string& where, std::string* leading) {
  if (processor == nullptr) return OkStatus();
  HADAL_ASSIGN_OR_RETURN(const std::string type, StringField(*processor, "type", where));
  if (type == "ByteLevel") return OkStatus();
  if (type == "Sequence") {
    HADAL_ASSIGN_OR_RETURN(const json* members, ArrayField(*processor, "processors", where));
    for (size_t i = 0; i < members->size(); ++i) {
      HADAL_RETURN_IF_ERROR(
          ReadPostProcessor(&(*members)[i], fmt::format("{}.processors[{}]", where, i), leading));
    }
    return OkStatus();
  }
  if (type != "TemplateProcessing") {
    return InvalidArgument(
        "{}.type: {} is not supported; ByteLevel, TemplateProcessing and "
        "Sequence are",
        where, QuoteForMessage(type));
  }
  HADAL_ASSIGN_OR_RETURN(const json* single, ArrayField(*processor, "single", where));
  if (single->empty()) return OkStatus();
  const json* special = Member(single->front(), "SpecialToken");
  if (special == nullptr) return OkStatus();
  HADAL_ASSIGN_OR_RETURN(*leading, StringField(*special, "id", where + ".single[0].SpecialToken"));
  return OkStatus();
}

// Fields of the model that must be absent, null or of one value.
Status CheckModelFields(const json& model, bool has_all_bytes) {
  if (const json* type = Member(model, "type"); type != nullptr && *type != json("BPE")) {
    return InvalidArgument("model.type: only BPE is supported");
  }
  if (const json* dropout = Member(model, "dropout"); dropout != nullptr && *dropout != json(0.0)) {
    return InvalidArgument("model.dropout: must be null or 0");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (const json* affix = Member(model, key); affix != nullptr && *affix != json("")) {
      return InvalidArgument("model.{}: must be null or empty", key);
    }
  }
  HADAL_ASSIGN_OR_RETURN(const bool fallback, BoolField(model, "byte_fallback", false, "model"));
  if (fallback) return InvalidArgument("model.byte_fallback: true is not supported");
  if (Member(model, "unk_token") != nullptr && !has_all_bytes) {
    return InvalidArgument(
        "model.unk_token: is supported only when model.vocab holds all 256 byte "
        "tokens, so that nothing is unknown");
  }
  return OkStatus();
}

Status SetToken(int32_t id, TokenTable::Entry entry, std::vector<TokenTable::Entry>* tokens) {
  const auto i = static_cast<size_t>(id);
  if (tokens->size() <= i) tokens->resize(i + 1);
  if (!(*tokens)[i].bytes.empty()) {
    return InvalidArgument("model.vocab: two tokens have the id {}", id);
  }
  (*tokens)[i] = std::move(entry);
  return OkStatus();
}

StatusOr<Vocabulary> ReadVocabulary(const json& model, std::vector<TokenTable::Entry>* tokens) {
  HADAL_ASSIGN_OR_RETURN(const json* object, ObjectField(model, "vocab", "model"));
  Vocabulary vocabulary;
  vocabulary.reserve(object->size());
  for (const auto& [content, value] : object->get_ref<const json::object_t&>()) {
    if (!value.is_number_integer() || content.empty()) {
      return InvalidArgument(
          "model.vocab: {} must have an integer as its id, and a token must not "
          "be empty",
          QuoteForMessage(content));
    }
    const auto id = value.get<int64_t>();
    HADAL_RETURN_IF_ERROR(CheckTokenId(id, "model.vocab"));
    const auto id32 = static_cast<int32_t>(id);
    HADAL_RETURN_IF_ERROR(SetToken(id32, {TokenToBytes(content), false}, tokens));
    vocabulary.emplace(content, id32);
  }
  return vocabulary;
}

std::vector<int32_t> ByteIds(const Vocabulary& vocabulary) {
  std::vector<int32_t> ids(256, -1);
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = vocabulary.find(ByteToken(static_cast<uint8_t>(byte)));
    if (found != vocabulary.end()) ids[static_cast<size_t>(byte)] = found->second;
  }
  return ids;
}

// The two sides of "a b" or ["a", "b"]; false: neither.
bool ReadMergeSides(const json& entry, std::string* left, std::string* right) {
  if (entry.is_array()) {
    if (entry.size() != 2 || !entry[0].is_string() || !entry[1].is_string()) return false;
    *left = entry[0].get<std::string>();
    *right = entry[1].get<std::string>();
    return true;
  }
  if (!entry.is_string()) return false;
  const auto& line = entry.get_ref<const std::string&>();
  const size_t space = line.find(' ');
  if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) return false;
  *left = line.substr(0, space);
  *right = line.substr(space + 1);
  return true;
}

StatusOr<std::vector<MergeRule>> ReadMerges(const json& model, const Vocabulary& vocabulary) {
  HADAL_ASSIGN_OR_RETURN(const json* entries, ArrayField(model, "merges", "model"));
  std::vector<MergeRule> merges;
  merges.reserve(entries->size());
  std::string left;
  std::string right;
  for (size_t i = 0; i < entries->size(); ++i) {
    const json& entry = (*entries)[i];
    if (entry.is_string() && entry.get_ref<const std::string&>().starts_with("#version")) continue;
    if (!ReadMergeSides(entry, &left, &right)) {
      return InvalidArgument("model.merges[{}]: must be two tokens, as \"a b\" or [\"a\", \"b\"]",
                             i);
    }
    const auto a = vocabulary.find(left);
    const auto b = vocabulary.find(right);
    const auto result = vocabulary.find(left + right);
    for (const auto& found : {a, b, result}) {
      if (found == vocabulary.end()) {
        return InvalidArgument("model.merges[{}]: {} + {} or its result is not in model.vocab", i,
                               QuoteForMessage(left), QuoteForMessage(right));
      }
    }
    merges.push_back({a->second, b->second, result->second});
  }
  return merges;
}

// Adds the added tokens to the table, and takes them out of the reach of merges and whole pieces:
// only EncodeWithControl may produce them.
Status ApplyAddedTokens(const Vocabulary& vocabulary, TokenizerFile* file) {
  std::set<int32_t> ids;
  for (const AddedToken& token : file->added_tokens) {
    const auto found = vocabulary.find(token.content);
    if (found != vocabulary.end() && found->second != token.id) {
      return InvalidArgument("added_tokens: {} has the id {} there and {} in model.vocab",
                             QuoteForMessage(token.content), token.id, found->second);
    }
    const auto i = static_cast<size_t>(token.id);
    if (found == vocabulary.end()) {
      HADAL_RETURN_IF_ERROR(
          SetToken(token.id, {TokenToBytes(token.content), false}, &file->tokens));
    }
    file->tokens[i].special = token.special;
    ids.insert(token.id);
  }
  std::erase_if(file->merges, [&](const MergeRule& rule) { return ids.count(rule.result) > 0; });
  std::erase_if(file->whole_pieces, [&](const auto& piece) { return ids.count(piece.second) > 0; });
  return OkStatus();
}

Status ReadModel(const json& root, TokenizerFile* file) {
  HADAL_ASSIGN_OR_RETURN(const json* model, ObjectField(root, "model", ""));
  HADAL_ASSIGN_OR_RETURN(const Vocabulary vocabulary, ReadVocabulary(*model, &file->tokens));
  file->byte_ids = ByteIds(vocabulary);
  const bool has_all_bytes = std::ranges::find(file->byte_ids, -1) == file->byte_ids.end();
  HADAL_RETURN_IF_ERROR(CheckModelFields(*model, has_all_bytes));
  HADAL_ASSIGN_OR_RETURN(file->merges, ReadMerges(*model, vocabulary));
  HADAL_ASSIGN_OR_RETURN(const bool ignore_merges,
                         BoolField(*model, "ignore_merges", false, "model"));
  if (ignore_merges) {
    for (const auto& [content, id] : vocabulary) {
      const std::string& bytes = file->tokens[static_cast<size_t>(id)].bytes;
      // A token with characters outside the byte map cannot equal a piece.
      if (IsByteSpelled(content)) file->whole_pieces.emplace(bytes, id);
    }
  }
  if (const json* added = Member(root, "added_tokens"); added != nullptr) {
    HADAL_ASSIGN_OR_RETURN(file->added_tokens, ParseAddedTokens(*added));
  }
  return ApplyAddedTokens(vocabulary, file);
}

}  // namespace

StatusOr<TokenizerFile> ParseTokenizerFile(std::string_view tokenizer_json) {
  HADAL_ASSIGN_OR_RETURN(const json root, ParseJson(tokenizer_json, "tokenizer.json"));
  if (!root.is_object()) return InvalidArgument("tokenizer.json: must be an object");
  TokenizerFile file;
  HADAL_RETURN_IF_ERROR(CheckNormalizer(Member(root, "normalizer")));
  HADAL_RETURN_IF_ERROR(CheckDecoder(Member(root, "decoder")));
  HADAL_ASSIGN_OR_RETURN(const json* pre_tokenizer, ObjectField(root, "pre_tokenizer", ""));
  HADAL_ASSIGN_OR_RETURN(file.pre_tokenizer, PreTokenizer::Parse(*pre_tokenizer));
  HADAL_RETURN_IF_ERROR(
      ReadPostProcessor(Member(root, "post_processor"), "post_processor", &file.leading_special));
  HADAL_RETURN_IF_ERROR(ReadModel(root, &file));
  return file;
}

}  // namespace hadal
