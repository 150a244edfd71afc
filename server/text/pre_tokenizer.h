#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "server/text/split_pattern.h"

namespace hadal {

// Receives the pieces of a text in order.
class PieceSink {
 public:
  virtual void Add(std::string_view piece) = 0;

 protected:
  ~PieceSink() = default;
};

// The pre_tokenizer of a tokenizer.json up to its ByteLevel: stages that cut every piece of the
// stage before into matches and the gaps between them. Immutable; thread-safe.
class PreTokenizer {
 public:
  // INVALID_ARGUMENT names the field that is malformed or not supported.
  static StatusOr<PreTokenizer> Parse(const nlohmann::json& pre_tokenizer);

  // Non-empty pieces whose concatenation is `text`. REQUIRES: valid UTF-8.
  void Split(std::string_view text, PieceSink* sink) const { RunStage(0, text, sink); }

 private:
  Status AddStage(const nlohmann::json& stage, const std::string& field);
  Status AddSplit(const nlohmann::json& stage, const std::string& field);
  Status AddByteLevel(const nlohmann::json& stage, const std::string& field);
  void RunStage(size_t stage, std::string_view text, PieceSink* sink) const;

  std::vector<std::unique_ptr<SplitPattern>> stages_;
  bool byte_level_ = false;  // the last stage has been read
};

}  // namespace hadal
