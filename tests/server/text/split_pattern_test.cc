#include "server/text/split_pattern.h"

#include <random>
#include <vector>

#include "tests/server/text/text_fixtures.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

std::vector<std::string> Matches(const SplitPattern& pattern, std::string_view text) {
  std::vector<std::string> found;
  for (size_t at = 0; at <= text.size();) {
    const auto match = pattern.Find(text, at);
    if (!match) break;
    found.emplace_back(text.substr(match->begin, match->end - match->begin));
    at = match->end;
  }
  return found;
}

constexpr const char* kDeepseekV3 =
    "[!\"#$%&'()*+,\\-./"
    ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";

// Short texts over what the patterns tell apart.
std::string Tricky(std::mt19937_64* random) {
  const std::vector<std::string> parts = {
      " ",  "  ",     "\n",     "\r", "\t",     "\u3000",     "\u0085", "\u180e", "a",      "B",
      "'s", "'ll",    "'",      "1",  "23",     "\u0301",     "\u0660", "\u4e2d", "\u3042", "!",
      "-",  "\u3002", "\u20ac", "+",  "\u00e9", "\U0001F600", "\x01",   "\u200b"};
  std::string text;
  for (size_t n = (*random)() % 14; n > 0; --n) text += parts[(*random)() % parts.size()];
  return (*random)() % 4 ? text : text + testing::RandomText(random, 10);
}

TEST_CASE("hand-written matchers find what the regex engine finds") {
  std::mt19937_64 random(testing::RandomSeed());
  const std::vector<std::string> known = {kDeepseekV3, std::string(kByteLevelRegex), R"(\s+$)"};
  const std::vector<std::string> runs = {R"(\p{N}{1,3})",
                                         R"([\r\n])",
                                         R"(\s?[A-Za-zéÄ　-。]+)",
                                         R"( ?[^\s\p{L}\p{N}]+)",
                                         R"([一-龥぀-ゟ゠-ヿ]+)",
                                         R"(\d)"};
  const auto compare = [&](const std::string& regex, const std::unique_ptr<SplitPattern>& ours) {
    REQUIRE(ours != nullptr);
    const auto engine = MakePcrePattern(regex, "regex");
    REQUIRE(engine.ok());
    for (int round = 0; round < 3000; ++round) {
      const std::string text = Tricky(&random);
      CAPTURE(regex, text);
      REQUIRE(Matches(*ours, text) == Matches(**engine, text));
    }
  };
  for (const std::string& regex : known) compare(regex, MakeKnownPattern(regex));
  for (const std::string& regex : runs) compare(regex, MakeClassRunPattern(regex));
}

TEST_CASE("patterns have Oniguruma's meaning in the general engine") {
  const auto matches = [](const char* regex, std::string_view text) {
    const auto pattern = MakePcrePattern(regex, "regex");
    REQUIRE(pattern.ok());
    return Matches(**pattern, text);
  };
  using Found = std::vector<std::string>;
  // White space is Unicode's property: U+180E and U+001C are not in it, U+0085 is.
  REQUIRE(matches(R"(\s)", "\u180e\x1c\u0085") == Found{"\u0085"});
  // ^ and $ work by line, . stops at \n only.
  REQUIRE(matches("^a$", "a\nba\na") == Found{"a", "a"});
  REQUIRE(matches("a.b", "a\rb a\nb") == Found{"a\rb"});
  // Characters that Unicode gained after version 14 have their categories.
  REQUIRE(matches(R"(\p{Lu}+)", "\u1c89\ua7cb") == Found{"\u1c89\ua7cb"});
  REQUIRE(matches(R"(\v)", "\n\v") == Found{"\v"});
  REQUIRE(matches(R"((?i:'S|'Ll)|[^\S\n]+)", "it's'LL \t\n") == Found{"'s", "'LL", " \t"});
}

TEST_CASE("patterns that the engines read differently are refused by name") {
  for (const char* regex :
       {R"(\w+)", R"(\bx)", R"(\h)", "[[:alpha:]]", "[a-z&&[^b]]", "[a[bc]]", "a{2}+", "a{,3}",
        R"((a)\1)", R"(\p{Greek})", "(?<name>a)", "[]a]", "[", "(", R"(\p{L)", R"([\s-z])"}) {
    CAPTURE(regex);
    const auto made = MakeRegexPattern(regex, "pre_tokenizer.pattern.Regex");
    REQUIRE_FALSE(made.ok());
    REQUIRE(made.status().code() == StatusCode::kInvalidArgument);
    REQUIRE(made.status().message().starts_with("pre_tokenizer.pattern.Regex: "));
  }
  REQUIRE_FALSE(MakeRegexPattern("", "regex").ok());
  REQUIRE_FALSE(MakeRegexPattern(std::string(100'000, 'a'), "regex").ok());
  REQUIRE_FALSE(MakeStringPattern("", "text").ok());
}

TEST_CASE("string patterns are taken literally") {
  const auto pattern = MakeStringPattern("a.b", "text");
  REQUIRE(pattern.ok());
  REQUIRE(Matches(**pattern, "a.b axb a.ba.b") == std::vector<std::string>{"a.b", "a.b", "a.b"});
}

TEST_CASE("hostile text neither overflows nor runs for ever") {
  const auto nested = MakeRegexPattern("(?:a|b)+c", "regex");
  const auto doubled = MakeRegexPattern("(?:a+)+$", "regex");
  REQUIRE(nested.ok());
  REQUIRE(doubled.ok());
  REQUIRE(Matches(**nested, std::string(1 << 18, 'a') + "c").size() <= 1);
  REQUIRE(Matches(**doubled, std::string(64, 'a') + "b").empty());
  const std::string spaces = std::string(1 << 20, ' ') + "x";
  for (const char* regex : {kDeepseekV3, R"(\s+$)", R"(\s?[A-Z]+)"}) {
    const auto pattern = MakeRegexPattern(regex, "regex");
    REQUIRE(pattern.ok());
    REQUIRE(Matches(**pattern, spaces).size() <= 2);
  }
  // Short runs of white space by the million, none of them at the end of a line: half an hour for a
  // matcher that looks back to the start of the text from each.
  std::string runs;
  for (int i = 0; i < 1 << 20; ++i) runs += "1 ";
  const auto trailing = MakeRegexPattern(R"(\s+$)", "regex");
  REQUIRE(trailing.ok());
  REQUIRE(Matches(**trailing, runs + "1").empty());
  REQUIRE(Matches(**trailing, runs + "\n1" + runs) == std::vector<std::string>{" ", " "});
}

}  // namespace
}  // namespace hadal
