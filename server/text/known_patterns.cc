// Matchers of linear time for the patterns of DeepSeek's and GPT-2's files, recognised by their
// exact text. Each alternative of a pattern is one function here: it returns the end of its match
// at `at`, or `at` when it does not match there.
#include <array>
#include <utility>

#include "server/text/split_pattern.h"
#include "server/text/utf8_cursor.h"

namespace hadal {

const std::string_view kByteLevelRegex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

constexpr std::string_view kDeepseekV3Regex =
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
constexpr std::string_view kTrailingSpaceRegex = R"(\s+$)";

struct Classified {
  CategoryMask mask;
  uint32_t length;
};

Classified ClassAt(std::string_view text, size_t at) {
  static const CategoryTable& categories = CategoryTable::Get();
  const DecodedChar c = DecodeChar(text, at);
  return {categories[c.code_point], c.length};
}

// The end of the run of characters whose mask meets `wanted`.
size_t RunEnd(std::string_view text, size_t at, CategoryMask wanted) {
  while (at < text.size()) {
    const Classified c = ClassAt(text, at);
    if ((c.mask & wanted) == 0) break;
    at += c.length;
  }
  return at;
}

// The end of the run of characters whose mask does not meet `unwanted`.
size_t RunEndOutside(std::string_view text, size_t at, CategoryMask unwanted) {
  while (at < text.size()) {
    const Classified c = ClassAt(text, at);
    if ((c.mask & unwanted) != 0) break;
    at += c.length;
  }
  return at;
}

bool IsNewline(char c) { return c == '\r' || c == '\n'; }
bool IsAsciiLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool IsAsciiPunctuation(char c) {
  return c > ' ' && c < 0x7F && !IsAsciiLetter(c) && !(c >= '0' && c <= '9');
}

// \s+(?!\S)|\s+ with `end` the end of the white space at `at`: gives the last character back when
// something other than white space follows, unless it is the only one.
size_t SpaceEnd(std::string_view text, size_t at, size_t end) {
  if (end == text.size() || end == at) return end;
  const size_t last = PreviousChar(text, end);
  return last > at ? last : end;
}

// The alternatives of kDeepseekV3Regex.
size_t PunctuationThenAscii(std::string_view text, size_t at) {
  if (!IsAsciiPunctuation(text[at])) return at;
  size_t end = at + 1;
  while (end < text.size() && IsAsciiLetter(text[end])) ++end;
  return end > at + 1 ? end : at;
}

size_t Word(std::string_view text, size_t at) {
  const Classified first = ClassAt(text, at);
  const bool prefix = !IsNewline(text[at]) && !(first.mask & (kLetter | kPunctuation | kSymbol));
  const size_t begin = prefix ? at + first.length : at;
  const size_t end = RunEnd(text, begin, kLetter | kMark);
  if (end > begin) return end;
  return first.mask & kMark ? begin : at;  // the prefix alone, as a run of one mark
}

size_t Punctuation(std::string_view text, size_t at) {
  const size_t begin = text[at] == ' ' ? at + 1 : at;
  size_t end = RunEnd(text, begin, kPunctuation | kSymbol);
  if (end == begin) return at;
  while (end < text.size() && IsNewline(text[end])) ++end;
  return end;
}

size_t SpaceWithNewlines(std::string_view text, size_t at) {
  const size_t end = RunEnd(text, at, kWhiteSpace);
  for (size_t last = end; last > at; --last) {
    if (IsNewline(text[last - 1])) return last;
  }
  return SpaceEnd(text, at, end);
}

size_t DeepseekV3Match(std::string_view text, size_t at) {
  for (const auto alternative : {PunctuationThenAscii, Word, Punctuation, SpaceWithNewlines}) {
    if (const size_t end = alternative(text, at); end > at) return end;
  }
  return at;
}

// The alternatives of kByteLevelRegex.
size_t Contraction(std::string_view text, size_t at) {
  if (text[at] != '\'') return at;
  const std::string_view rest = text.substr(at + 1);
  for (const std::string_view suffix : {"s", "t", "re", "ve", "m", "ll", "d"}) {
    if (rest.starts_with(suffix)) return at + 1 + suffix.size();
  }
  return at;
}

size_t ByteLevelMatch(std::string_view text, size_t at) {
  if (const size_t end = Contraction(text, at); end > at) return end;
  const size_t begin = text[at] == ' ' ? at + 1 : at;
  if (const size_t end = RunEnd(text, begin, kLetter); end > begin) return end;
  if (const size_t end = RunEnd(text, begin, kNumber); end > begin) return end;
  const size_t end = RunEndOutside(text, begin, kWhiteSpace | kLetter | kNumber);
  if (end > begin) return end;
  return SpaceEnd(text, at, RunEnd(text, at, kWhiteSpace));
}

class AlternativesPattern : public SplitPattern {
 public:
  using Match = size_t (*)(std::string_view text, size_t at);
  explicit AlternativesPattern(Match match) : match_(match) {}

  std::optional<TextSpan> Find(std::string_view text, size_t from) const override {
    for (size_t at = from; at < text.size(); at += DecodeChar(text, at).length) {
      if (const size_t end = match_(text, at); end > at) return TextSpan{at, end};
    }
    return std::nullopt;
  }

 private:
  Match match_;
};

// \s+$, where $ is the end of the text or of a line.
class TrailingSpacePattern : public SplitPattern {
 public:
  std::optional<TextSpan> Find(std::string_view text, size_t from) const override {
    for (size_t at = from; at < text.size();) {
      const Classified c = ClassAt(text, at);
      if (!(c.mask & kWhiteSpace)) {
        at += c.length;
        continue;
      }
      const size_t end = RunEnd(text, at, kWhiteSpace);
      if (end == text.size()) return TextSpan{at, end};
      // A newline ends the match before it; as the run's first character it leaves nothing.
      // Only the run is searched: a text of many runs must not be read again for each.
      const size_t newline = text.substr(at, end - at).rfind('\n');
      if (newline != std::string_view::npos && newline > 0) return TextSpan{at, at + newline};
      at = end;
    }
    return std::nullopt;
  }
};

}  // namespace

std::unique_ptr<SplitPattern> MakeKnownPattern(std::string_view regex) {
  if (regex == kDeepseekV3Regex) return std::make_unique<AlternativesPattern>(DeepseekV3Match);
  if (regex == kByteLevelRegex) return std::make_unique<AlternativesPattern>(ByteLevelMatch);
  if (regex == kTrailingSpaceRegex) return std::make_unique<TrailingSpacePattern>();
  return nullptr;
}

}  // namespace hadal
