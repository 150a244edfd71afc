#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "server/text/tokenizer.h"

namespace hadal::testing {

// A tokenizer.json with one token per byte and the merges given as pairs of plain ASCII tokens, in
// rank order; `added` tokens are special unless "think" is in them. `pre_tokenizer` is JSON.
struct SmallTokenizer {
  std::vector<std::pair<std::string, std::string>> merges;
  std::vector<std::string> added;
  std::string pre_tokenizer =
      R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true})";
};
std::string ToJson(const SmallTokenizer& small);
// REQUIRES: it parses.
std::unique_ptr<Tokenizer> Make(const SmallTokenizer& small, const std::string& config_json = "");

// DeepSeek-V3's tokenizer from the Python environment of the tests, loaded once. Throws when the
// environment lacks the package.
const Tokenizer& DeepseekTokenizer();

// Valid UTF-8 of ASCII, CJK, combining marks, emoji and anything else.
std::string RandomText(std::mt19937_64* random, size_t max_chars);
// The same over a few characters, so that rules meet.
std::string RandomAbc(std::mt19937_64* random, size_t length);

}  // namespace hadal::testing
