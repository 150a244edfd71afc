#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "common/status.h"

namespace hadal {

// Bytes [begin, end) of a text.
struct TextSpan {
  size_t begin;
  size_t end;
};

// A compiled pattern of one Split stage. Immutable; thread-safe.
class SplitPattern {
 public:
  virtual ~SplitPattern() = default;
  // The leftmost match that begins at `from` or later; none: no further match. `text` is what the
  // pattern's anchors and look-arounds see. REQUIRES: valid UTF-8, from at a character.
  virtual std::optional<TextSpan> Find(std::string_view text, size_t from) const = 0;
};

// An Oniguruma (Ruby syntax) pattern, as Hugging Face tokenizers reads it. Patterns that are known
// or simple get a matcher of linear time, the others PCRE2. INVALID_ARGUMENT, naming `field`, for
// what is malformed or means something else in PCRE2.
StatusOr<std::unique_ptr<SplitPattern>> MakeRegexPattern(std::string_view regex,
                                                         std::string_view field);
// A fixed string. INVALID_ARGUMENT when it is empty.
StatusOr<std::unique_ptr<SplitPattern>> MakeStringPattern(std::string_view text,
                                                          std::string_view field);
// Every numeric character, or every run of them.
std::unique_ptr<SplitPattern> MakeDigitsPattern(bool individual);

// The pattern of a ByteLevel pre-tokenizer with use_regex.
extern const std::string_view kByteLevelRegex;

// The three kinds behind MakeRegexPattern, for tests that compare them; null: not of that kind.
std::unique_ptr<SplitPattern> MakeKnownPattern(std::string_view regex);
std::unique_ptr<SplitPattern> MakeClassRunPattern(std::string_view regex);
StatusOr<std::unique_ptr<SplitPattern>> MakePcrePattern(std::string_view regex,
                                                        std::string_view field);

}  // namespace hadal
