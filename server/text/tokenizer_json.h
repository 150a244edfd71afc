#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/status.h"
#include "server/text/added_tokens.h"
#include "server/text/bpe_merges.h"
#include "server/text/pre_tokenizer.h"
#include "server/text/token_table.h"

namespace hadal {

// A tokenizer.json, read and checked.
struct TokenizerFile {
  PreTokenizer pre_tokenizer;
  std::vector<AddedToken> added_tokens;
  std::vector<TokenTable::Entry> tokens;  // by id
  std::vector<MergeRule> merges;          // by rank; none makes an added token
  std::vector<int32_t> byte_ids;          // [256]; -1: not in the vocabulary
  // Only with model.ignore_merges: pieces that are one token whatever the merges say.
  std::unordered_map<std::string, int32_t> whole_pieces;
  // The special token that a TemplateProcessing post-processor begins with; empty: none.
  std::string leading_special;
};

// INVALID_ARGUMENT names the field that is malformed or not supported.
StatusOr<TokenizerFile> ParseTokenizerFile(std::string_view tokenizer_json);

// What tokenizer_config.json adds.
struct TokenizerConfig {
  std::string bos_token;        // empty: none
  std::optional<bool> add_bos;  // as stated, or implied by tokenizer_class
  std::string chat_template;    // empty: none
};

// Of an empty text: no fields.
StatusOr<TokenizerConfig> ParseTokenizerConfig(std::string_view config_json);

}  // namespace hadal
