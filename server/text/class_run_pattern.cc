// Patterns of the form "space? class quantifier", which most stages are: \p{N}{1,3}, [\r\n],
// \s?[A-Za-z]+. They need no backtracking, so one pass over the text finds all matches.
#include <charconv>
#include <cstdint>
#include <limits>

#include "server/text/code_point_set.h"
#include "server/text/regex_syntax.h"
#include "server/text/split_pattern.h"
#include "server/text/utf8_cursor.h"

namespace hadal {
namespace {

constexpr uint32_t kNoLimit = std::numeric_limits<uint32_t>::max();

class ClassRunPattern : public SplitPattern {
 public:
  ClassRunPattern(CodePointSet prefix, CodePointSet members, uint32_t max_length)
      : prefix_(std::move(prefix)), members_(std::move(members)), max_length_(max_length) {}

  std::optional<TextSpan> Find(std::string_view text, size_t from) const override {
    for (size_t at = from; at < text.size();) {
      const DecodedChar c = DecodeChar(text, at);
      const size_t next = at + c.length;
      if (prefix_.Contains(c.code_point)) {
        if (const size_t end = RunEnd(text, next); end > next) return TextSpan{at, end};
      }
      if (members_.Contains(c.code_point)) return TextSpan{at, RunEnd(text, at)};
      at = next;
    }
    return std::nullopt;
  }

 private:
  size_t RunEnd(std::string_view text, size_t at) const {
    for (uint32_t n = 0; n < max_length_ && at < text.size(); ++n) {
      const DecodedChar c = DecodeChar(text, at);
      if (!members_.Contains(c.code_point)) break;
      at += c.length;
    }
    return at;
  }

  CodePointSet prefix_;  // optional before the run; may be empty
  CodePointSet members_;
  uint32_t max_length_;  // characters in a run
};

// Nothing, "+" or "{1,n}" up to the end of the pattern.
std::optional<uint32_t> ReadLastQuantifier(std::string_view rest) {
  if (rest.empty()) return 1;
  if (rest == "+") return kNoLimit;
  if (!rest.starts_with("{1,") || !rest.ends_with("}")) return std::nullopt;
  rest = rest.substr(3, rest.size() - 4);
  if (rest.empty()) return kNoLimit;
  uint32_t max = 0;
  const auto [stop, error] = std::from_chars(rest.data(), rest.data() + rest.size(), max);
  if (error != std::errc() || stop != rest.data() + rest.size() || max == 0) return std::nullopt;
  return max;
}

}  // namespace

std::unique_ptr<SplitPattern> MakeClassRunPattern(std::string_view regex) {
  RegexSyntax syntax(regex);
  CodePointSet prefix;
  if (syntax.Skip("\\s?")) {
    prefix.AddCategories(kWhiteSpace);
  } else if (syntax.Skip(" ?")) {
    prefix.Add(' ', ' ');
  }
  auto members = syntax.ReadClass();
  if (!members) return nullptr;
  const auto max_length = ReadLastQuantifier(syntax.Rest());
  if (!max_length) return nullptr;
  return std::make_unique<ClassRunPattern>(std::move(prefix), std::move(*members), *max_length);
}

std::unique_ptr<SplitPattern> MakeDigitsPattern(bool individual) {
  CodePointSet numbers;
  numbers.AddCategories(kNumber);
  return std::make_unique<ClassRunPattern>(CodePointSet(), std::move(numbers),
                                           individual ? 1 : kNoLimit);
}

}  // namespace hadal
