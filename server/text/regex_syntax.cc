#include "server/text/regex_syntax.h"

#include <charconv>

#include "server/text/utf8_cursor.h"

namespace hadal {
namespace {

constexpr std::string_view kMeta = "\\^$.[]|()?*+{}";
constexpr uint32_t kCategoryBits = (CategoryMask{1} << 30) - 1;

CodePointSet SetOf(CategoryMask mask, bool inverted) {
  CodePointSet set;
  set.AddCategories(mask);
  if (inverted) set.Invert();
  return set;
}

bool IsAsciiAlnum(char c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

}  // namespace

bool RegexSyntax::Skip(std::string_view text) {
  if (!Rest().starts_with(text)) return false;
  at_ += text.size();
  return true;
}

std::optional<uint32_t> RegexSyntax::ReadHex(size_t at, size_t digits, size_t* end) const {
  const size_t limit = std::min(regex_.size(), at + digits);
  uint32_t value = 0;
  const auto [stop, error] = std::from_chars(regex_.data() + at, regex_.data() + limit, value, 16);
  if (error != std::errc() || value >= CategoryTable::kLimit) return std::nullopt;
  *end = static_cast<size_t>(stop - regex_.data());
  return value;
}

std::optional<uint32_t> RegexSyntax::ReadEscapedLiteral() {
  if (Rest().size() < 2) return std::nullopt;
  const char c = regex_[at_ + 1];
  constexpr std::string_view kNames = "tnvfrae";
  constexpr uint8_t kValues[] = {0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x07, 0x1B};
  if (const size_t i = kNames.find(c); i != std::string_view::npos) {
    at_ += 2;
    return kValues[i];
  }
  size_t end = 0;
  if (c == 'u') {
    const auto value = ReadHex(at_ + 2, 4, &end);
    if (!value || end != at_ + 6) return std::nullopt;
    at_ = end;
    return value;
  }
  if (c == 'x') {
    const bool braces = Rest().substr(2).starts_with('{');
    const auto value = ReadHex(at_ + (braces ? 3 : 2), braces ? 6 : 2, &end);
    if (!value || (braces && !regex_.substr(end).starts_with('}'))) return std::nullopt;
    // Below \x{...} a value above 7F is a raw byte to Oniguruma, which UTF-8 text cannot hold
    // alone.
    if (!braces && *value > 0x7F) return std::nullopt;
    at_ = end + (braces ? 1 : 0);
    return value;
  }
  if (IsAsciiAlnum(c)) return std::nullopt;
  const DecodedChar decoded = DecodeChar(regex_, at_ + 1);
  at_ += 1 + decoded.length;
  return decoded.code_point;
}

std::optional<uint32_t> RegexSyntax::ReadLiteral() {
  if (AtEnd()) return std::nullopt;
  if (regex_[at_] == '\\') return ReadEscapedLiteral();
  if (kMeta.find(regex_[at_]) != std::string_view::npos) return std::nullopt;
  const DecodedChar decoded = DecodeChar(regex_, at_);
  at_ += decoded.length;
  return decoded.code_point;
}

std::optional<CodePointSet> RegexSyntax::ReadProperty() {
  const std::string_view rest = Rest();
  if (!rest.starts_with("\\p{") && !rest.starts_with("\\P{")) return std::nullopt;
  const size_t close = rest.find('}');
  if (close == std::string_view::npos) return std::nullopt;
  std::string_view name = rest.substr(3, close - 3);
  bool inverted = rest[1] == 'P';
  if (name.starts_with('^')) {
    inverted = !inverted;
    name.remove_prefix(1);
  }
  const CategoryMask mask = CategoryMaskByName(name);
  if (mask == 0) return std::nullopt;
  at_ += close + 1;
  return SetOf(mask & kCategoryBits, inverted);
}

std::optional<CodePointSet> RegexSyntax::ReadClassEscape() {
  constexpr CategoryMask kDecimal = MaskOf(Category::kNd, Category::kNd);
  if (Skip("\\s")) return SetOf(kWhiteSpace, false);
  if (Skip("\\S")) return SetOf(kWhiteSpace, true);
  if (Skip("\\d")) return SetOf(kDecimal, false);
  if (Skip("\\D")) return SetOf(kDecimal, true);
  return ReadProperty();
}

bool RegexSyntax::ReadMember(CodePointSet* set) {
  if (auto escape = ReadClassEscape()) {
    set->AddAll(*escape);
    // "\s-x" means different things to different engines.
    return !Rest().starts_with('-') || Rest().starts_with("-]");
  }
  const auto read_char = [&]() -> std::optional<uint32_t> {
    const std::string_view rest = Rest();
    if (rest.empty() || rest[0] == '[' || rest[0] == ']' || rest.starts_with("&&")) {
      return std::nullopt;
    }
    if (rest[0] == '\\') return ReadEscapedLiteral();
    const DecodedChar decoded = DecodeChar(regex_, at_);
    at_ += decoded.length;
    return decoded.code_point;
  };
  const auto first = read_char();
  if (!first) return false;
  if (!Rest().starts_with('-') || Rest().starts_with("-]")) {
    set->Add(*first, *first);
    return true;
  }
  at_ += 1;
  const auto last = read_char();
  if (!last || *last < *first) return false;
  set->Add(*first, *last);
  return true;
}

std::optional<CodePointSet> RegexSyntax::ReadClass() {
  if (!Rest().starts_with('[')) return ReadClassEscape();
  const size_t start = at_;
  at_ += 1;
  const bool inverted = Skip("^");
  CodePointSet set;
  bool good = !Rest().starts_with(']');
  while (good && !AtEnd() && !Rest().starts_with(']')) good = ReadMember(&set);
  if (!good || !Skip("]")) {
    at_ = start;
    return std::nullopt;
  }
  if (inverted) set.Invert();
  return set;
}

}  // namespace hadal
