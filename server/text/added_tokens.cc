#include "server/text/added_tokens.h"

#include <set>

#include "server/text/json_fields.h"
#include "server/text/token_table.h"

namespace hadal {
namespace {

constexpr size_t kMaxContentBytes = 1024;

StatusOr<AddedToken> ParseAddedToken(const nlohmann::json& entry, const std::string& where) {
  AddedToken token;
  HADAL_ASSIGN_OR_RETURN(const int64_t id, IntegerField(entry, "id", where));
  HADAL_RETURN_IF_ERROR(CheckTokenId(id, where + ".id"));
  token.id = static_cast<int32_t>(id);
  HADAL_ASSIGN_OR_RETURN(token.content, StringField(entry, "content", where));
  if (token.content.empty() || token.content.size() > kMaxContentBytes) {
    return InvalidArgument("{}.content: must have 1 to {} bytes", where, kMaxContentBytes);
  }
  HADAL_ASSIGN_OR_RETURN(token.special, BoolField(entry, "special", false, where));
  HADAL_ASSIGN_OR_RETURN(token.normalized, BoolField(entry, "normalized", !token.special, where));
  for (const char* flag : {"lstrip", "rstrip", "single_word"}) {
    HADAL_ASSIGN_OR_RETURN(const bool set, BoolField(entry, flag, false, where));
    if (set) return InvalidArgument("{}.{}: true is not supported", where, flag);
  }
  return token;
}

}  // namespace

StatusOr<std::vector<AddedToken>> ParseAddedTokens(const nlohmann::json& added_tokens) {
  if (!added_tokens.is_array()) return InvalidArgument("added_tokens: must be an array");
  std::vector<AddedToken> tokens;
  std::set<int32_t> ids;
  std::set<std::string> contents;
  for (size_t i = 0; i < added_tokens.size(); ++i) {
    const std::string where = fmt::format("added_tokens[{}]", i);
    HADAL_ASSIGN_OR_RETURN(AddedToken token, ParseAddedToken(added_tokens[i], where));
    if (!ids.insert(token.id).second) {
      return InvalidArgument("{}.id: {} stands twice", where, token.id);
    }
    if (!contents.insert(token.content).second) {
      return InvalidArgument("{}.content: {} stands twice", where, QuoteForMessage(token.content));
    }
    tokens.push_back(std::move(token));
  }
  return tokens;
}

AddedTokenMatcher::AddedTokenMatcher(const std::vector<AddedToken>& tokens) {
  for (const AddedToken& token : tokens) {
    (token.normalized ? normalized_ : raw_).Insert(token.content, token.id);
  }
}

std::vector<AddedTokenMatcher::Segment> AddedTokenMatcher::Split(std::string_view text) const {
  std::vector<Segment> first;
  raw_.Split(text, &first);
  std::vector<Segment> all;
  for (const Segment& segment : first) {
    if (segment.id >= 0) {
      all.push_back(segment);
    } else {
      normalized_.Split(segment.text, &all);
    }
  }
  return all;
}

void AddedTokenMatcher::Trie::Insert(std::string_view content, int32_t id) {
  uint32_t node = 0;
  for (const char c : content) {
    const auto [child, inserted] =
        nodes[node].children.try_emplace(c, static_cast<uint32_t>(nodes.size()));
    node = child->second;
    if (inserted) nodes.emplace_back();
  }
  nodes[node].id = id;
}

size_t AddedTokenMatcher::Trie::Match(std::string_view text, int32_t* id) const {
  size_t longest = 0;
  uint32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto child = nodes[node].children.find(text[i]);
    if (child == nodes[node].children.end()) break;
    node = child->second;
    if (nodes[node].id < 0) continue;
    longest = i + 1;
    *id = nodes[node].id;
  }
  return longest;
}

void AddedTokenMatcher::Trie::Split(std::string_view text, std::vector<Segment>* out) const {
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    int32_t id = -1;
    const size_t length = Match(text.substr(at), &id);
    if (length == 0) {
      ++at;
      continue;
    }
    if (at > done) out->push_back({text.substr(done, at - done), -1});
    out->push_back({text.substr(at, length), id});
    done = at += length;
  }
  if (done < text.size()) out->push_back({text.substr(done), -1});
}

}  // namespace hadal
