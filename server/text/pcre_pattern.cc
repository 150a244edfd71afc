// Any other pattern, through PCRE2. Oniguruma's pattern is rewritten first: classes become explicit
// ranges, because the engines' Unicode versions and their idea of white space differ, and whatever
// the two read differently is refused.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <array>
#include <string>

#include "common/utf8.h"
#include "server/text/regex_syntax.h"
#include "server/text/split_pattern.h"
#include "server/text/utf8_cursor.h"

namespace hadal {
namespace {

constexpr size_t kMaxClasses = 256;
// Backtracking steps of one search; a hostile text that needs more counts as a text without match.
constexpr uint32_t kMatchLimit = 5'000'000;
constexpr uint32_t kDepthLimit = 100'000;

template <typename T, void (*kFree)(T*)>
struct Freer {
  void operator()(T* object) const { kFree(object); }
};
using Code = std::unique_ptr<pcre2_code, Freer<pcre2_code, pcre2_code_free>>;
using CompileContext = std::unique_ptr<pcre2_compile_context,
                                       Freer<pcre2_compile_context, pcre2_compile_context_free>>;
using MatchContext =
    std::unique_ptr<pcre2_match_context, Freer<pcre2_match_context, pcre2_match_context_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Freer<pcre2_match_data, pcre2_match_data_free>>;

class PcrePattern : public SplitPattern {
 public:
  explicit PcrePattern(Code code)
      : code_(std::move(code)), context_(pcre2_match_context_create(nullptr)) {
    pcre2_set_match_limit(context_.get(), kMatchLimit);
    pcre2_set_depth_limit(context_.get(), kDepthLimit);
  }

  // Empty matches count, except right after another match, as in Oniguruma's find_iter.
  std::optional<TextSpan> Find(std::string_view text, size_t from) const override {
    thread_local const MatchData data(pcre2_match_data_create(1, nullptr));
    const auto match = [&](uint32_t options) {
      return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                         PCRE2_NO_UTF_CHECK | options, data.get(), context_.get());
    };
    int count = match(0);
    // Compiled code has a small stack; the interpreter takes its from the heap.
    if (count == PCRE2_ERROR_JIT_STACKLIMIT) count = match(PCRE2_NO_JIT);
    if (count <= 0) return std::nullopt;
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data.get());
    return TextSpan{bounds[0], bounds[1]};
  }

 private:
  Code code_;
  MatchContext context_;  // only read by matching
};

std::string ExplicitClass(const CodePointSet& set) {
  std::string out = "[";
  for (const auto& [first, last] : set.Ranges()) {
    out += fmt::format("\\x{{{:X}}}-\\x{{{:X}}}", first, last);
  }
  return out == "[" ? "(?!)" : out + "]";
}

// "{1,3}": what Oniguruma and PCRE2 both read as an interval, greedy or lazy.
bool ReadInterval(RegexSyntax* syntax, std::string* out) {
  const std::string_view rest = syntax->Rest();
  const size_t close = rest.find('}');
  if (close == std::string_view::npos) return false;
  const std::string_view body = rest.substr(1, close - 1);
  if (body.empty() || body[0] == ',' ||
      body.find_first_not_of("0123456789,") != std::string_view::npos) {
    return false;
  }
  out->append(rest.substr(0, close + 1));
  syntax->Skip(rest.substr(0, close + 1));
  return !syntax->Rest().starts_with('+');
}

bool CopyVerbatim(RegexSyntax* syntax, std::string* out) {
  for (const std::string_view token :
       {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "\\A", "\\z", "\\Z"}) {
    if (syntax->Skip(token)) {
      out->append(token);
      return true;
    }
  }
  const std::string_view rest = syntax->Rest();
  constexpr std::string_view kOperators = "^$.|()?*+";
  if (rest.starts_with("(?") || kOperators.find(rest[0]) == std::string_view::npos) return false;
  out->push_back(rest[0]);
  return syntax->Skip(rest.substr(0, 1));
}

// One element of the pattern; false: not one that both engines read alike.
bool TranslateElement(RegexSyntax* syntax, size_t* classes, std::string* out) {
  if (syntax->Rest().starts_with('{')) return ReadInterval(syntax, out);
  if (CopyVerbatim(syntax, out)) return true;
  if (const auto literal = syntax->ReadLiteral()) {
    out->append(fmt::format("\\x{{{:X}}}", *literal));
    return true;
  }
  if (++*classes > kMaxClasses) return false;
  const auto set = syntax->ReadClass();
  if (set) out->append(ExplicitClass(*set));
  return set.has_value();
}

StatusOr<std::string> Translate(std::string_view regex, std::string_view field) {
  RegexSyntax syntax(regex);
  std::string out;
  size_t classes = 0;
  while (!syntax.AtEnd()) {
    if (!TranslateElement(&syntax, &classes, &out)) {
      return InvalidArgument("{}: \"{}\" at byte {} of the pattern is not supported", field,
                             DisplayText(syntax.Rest(), 24), syntax.at());
    }
  }
  return out;
}

}  // namespace

StatusOr<std::unique_ptr<SplitPattern>> MakePcrePattern(std::string_view regex,
                                                        std::string_view field) {
  HADAL_ASSIGN_OR_RETURN(const std::string translated, Translate(regex, field));
  const CompileContext context(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  // Ruby's ^ and $ always work by line.
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                          PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                          &offset, context.get()));
  if (!code) {
    std::array<PCRE2_UCHAR, 160> reason{};
    pcre2_get_error_message(error, reason.data(), reason.size());
    return InvalidArgument("{}: the pattern does not compile: {}", field,
                           reinterpret_cast<const char*>(reason.data()));
  }
  // Without JIT the pattern is interpreted, with the same result.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return std::unique_ptr<SplitPattern>(std::make_unique<PcrePattern>(std::move(code)));
}

}  // namespace hadal
