#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "server/text/code_point_set.h"

namespace hadal {

// A cursor over an Oniguruma pattern: reads its characters, escapes and classes. Each reader
// advances only when it succeeds.
class RegexSyntax {
 public:
  explicit RegexSyntax(std::string_view regex) : regex_(regex) {}

  bool AtEnd() const { return at_ == regex_.size(); }
  size_t at() const { return at_; }
  std::string_view Rest() const { return regex_.substr(at_); }
  // Steps over `text` when it comes next.
  bool Skip(std::string_view text);

  // A character that stands for itself or an escape of one: \n, \x{20}, \[ and the like.
  std::optional<uint32_t> ReadLiteral();
  // \p{L}, \P{Lu}, \p{^L}, \s, \S, \d, \D.
  std::optional<CodePointSet> ReadClassEscape();
  // [...] without nested classes, && and POSIX names, or a class escape.
  std::optional<CodePointSet> ReadClass();

 private:
  std::optional<uint32_t> ReadEscapedLiteral();
  std::optional<uint32_t> ReadHex(size_t at, size_t digits, size_t* end) const;
  std::optional<CodePointSet> ReadProperty();
  // One member of [...]: a class escape, a character, or a range.
  bool ReadMember(CodePointSet* set);

  std::string_view regex_;
  size_t at_ = 0;
};

}  // namespace hadal
