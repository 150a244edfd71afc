#include "server/text/split_pattern.h"

#include "common/utf8.h"

namespace hadal {
namespace {

constexpr size_t kMaxRegexBytes = 64 << 10;

class StringPattern : public SplitPattern {
 public:
  explicit StringPattern(std::string_view text) : text_(text) {}

  std::optional<TextSpan> Find(std::string_view text, size_t from) const override {
    const size_t at = text.find(text_, from);
    if (at == std::string_view::npos) return std::nullopt;
    return TextSpan{at, at + text_.size()};
  }

 private:
  std::string text_;
};

}  // namespace

StatusOr<std::unique_ptr<SplitPattern>> MakeRegexPattern(std::string_view regex,
                                                         std::string_view field) {
  if (regex.empty() || regex.size() > kMaxRegexBytes || !IsValidUtf8(regex)) {
    return InvalidArgument("{}: a pattern is 1 to {} bytes of UTF-8", field, kMaxRegexBytes);
  }
  if (auto known = MakeKnownPattern(regex)) return known;
  if (auto run = MakeClassRunPattern(regex)) return run;
  return MakePcrePattern(regex, field);
}

StatusOr<std::unique_ptr<SplitPattern>> MakeStringPattern(std::string_view text,
                                                          std::string_view field) {
  if (text.empty()) return InvalidArgument("{}: an empty string splits nothing", field);
  return std::unique_ptr<SplitPattern>(std::make_unique<StringPattern>(text));
}

}  // namespace hadal
