#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/status.h"

namespace hadal {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
  bool normalized = false;
};

// The added_tokens of a tokenizer.json. INVALID_ARGUMENT names the entry that is malformed or uses
// lstrip, rstrip or single_word.
StatusOr<std::vector<AddedToken>> ParseAddedTokens(const nlohmann::json& added_tokens);

// Finds added tokens in text, leftmost-longest: first those that are not normalized, then, in what
// they leave, the normalized ones, as Hugging Face tokenizers does. Immutable; thread-safe.
class AddedTokenMatcher {
 public:
  struct Segment {
    std::string_view text;
    int32_t id;  // -1: text between tokens
  };

  explicit AddedTokenMatcher(const std::vector<AddedToken>& tokens);
  // Non-empty segments in order. O(bytes x longest token).
  std::vector<Segment> Split(std::string_view text) const;

 private:
  // Children by byte; a node is an index, 0 the root.
  struct Trie {
    Trie() : nodes(1) {}
    void Insert(std::string_view content, int32_t id);
    // Bytes of the longest token at the start of `text`, 0 for none.
    size_t Match(std::string_view text, int32_t* id) const;
    void Split(std::string_view text, std::vector<Segment>* out) const;

    struct Node {
      std::unordered_map<char, uint32_t> children;
      int32_t id = -1;
    };
    std::vector<Node> nodes;
  };

  Trie raw_;
  Trie normalized_;
};

}  // namespace hadal
