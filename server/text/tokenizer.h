#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace hadal {

// Byte-level BPE of a Hugging Face tokenizer.json. Immutable after loading; thread-safe.
class Tokenizer {
 public:
  // Reads tokenizer.json and, when there is one, tokenizer_config.json. NOT_FOUND without
  // tokenizer.json; INVALID_ARGUMENT names the field that is wrong or not supported.
  static StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model_dir);
  // For tests and fuzzing; `config_json` may be empty.
  static StatusOr<std::unique_ptr<Tokenizer>> Parse(std::string_view tokenizer_json,
                                                    std::string_view config_json);
  virtual ~Tokenizer() = default;

  // Text of a user: control tokens written in it are plain text. No BOS is added.
  // REQUIRES: valid UTF-8.
  virtual std::vector<int32_t> EncodeText(std::string_view text) const = 0;
  // Text of a template: added tokens in it are recognised, leftmost-longest. No BOS is added.
  virtual std::vector<int32_t> EncodeWithControl(std::string_view text) const = 0;

  // The bytes of a token, which may be part of a UTF-8 character; empty for ids without a token.
  virtual std::string_view TokenBytes(int32_t id) const = 0;
  // Whether the token is special (left out of text with skip_special_tokens).
  virtual bool IsSpecial(int32_t id) const = 0;
  // Bytes that are not UTF-8 become U+FFFD.
  virtual std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens) const = 0;

  // Id of an added token by its exact content.
  virtual std::optional<int32_t> ControlId(std::string_view content) const = 0;
  // One more than the largest id that has a token.
  virtual int32_t id_limit() const = 0;
  virtual std::optional<int32_t> bos_id() const = 0;
  virtual bool add_bos() const = 0;
  // tokenizer_config.json's chat_template, or chat_template.jinja; empty: none.
  virtual const std::string& chat_template() const = 0;
};

// Turns a stream of ids into text that is always valid UTF-8: bytes of an unfinished character are
// held back. One stream, one thread.
class IncrementalDecoder {
 public:
  IncrementalDecoder(const Tokenizer* tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}
  // Text that became complete with this token.
  std::string Push(int32_t id);
  // What is still held back, as U+FFFD.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::string pending_;  // at most 3 bytes
};

}  // namespace hadal
