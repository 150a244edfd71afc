#include "server/text/stop_matcher.h"

#include <algorithm>
#include <random>

#include "common/utf8.h"
#include "tests/server/text/text_fixtures.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

struct Outcome {
  std::string text;
  std::optional<std::string> match;
  bool operator==(const Outcome&) const = default;
};

// The whole text at once: the first place where a stop string ends, the longest of those there.
Outcome Naive(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    const std::string* longest = nullptr;
    for (const std::string& stop : stops) {
      if (stop.empty() || !std::string_view(text).substr(0, end).ends_with(stop)) continue;
      if (longest == nullptr || stop.size() > longest->size()) longest = &stop;
    }
    if (longest != nullptr) return {text.substr(0, end - longest->size()), *longest};
  }
  return {text, std::nullopt};
}

bool IsPrefixOfOne(const std::vector<std::string>& stops, std::string_view text) {
  return text.empty() || std::ranges::any_of(stops, [&](const std::string& stop) {
           return stop.starts_with(text) && stop.size() > text.size();
         });
}

TEST_CASE("however the stream is cut, stop strings are found as in the whole text") {
  std::mt19937_64 random(testing::RandomSeed());
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stops(random() % 4);
    for (std::string& stop : stops) stop = testing::RandomAbc(&random, random() % 6);
    const std::string text = testing::RandomAbc(&random, random() % 40);
    StopMatcher matcher(stops);
    Outcome outcome;
    for (size_t at = 0; at < text.size() && !outcome.match;) {
      const size_t size = std::min(text.size() - at, random() % 5);
      const auto output = matcher.Push(std::string_view(text).substr(at, size));
      at += size;
      outcome.text += output.text;
      outcome.match = output.match;
      // No more is held back than what may become a stop string.
      if (!output.match) {
        REQUIRE(IsPrefixOfOne(
            stops, std::string_view(text).substr(outcome.text.size(), at - outcome.text.size())));
      }
    }
    if (!outcome.match) outcome.text += matcher.Finish();
    CAPTURE(stops, text);
    REQUIRE(outcome == Naive(stops, text));
  }
}

TEST_CASE("what is shown stays valid UTF-8") {
  std::mt19937_64 random(testing::RandomSeed());
  for (int round = 0; round < 500; ++round) {
    const std::string text = testing::RandomText(&random, 40);
    StopMatcher matcher({"。。", "\u4e2d\u6587", "é", "\U0001F600x"});
    for (size_t at = 0; at < text.size();) {
      const size_t size = Utf8SequenceLength(std::string_view(text).substr(at));
      const auto output = matcher.Push(std::string_view(text).substr(at, size));
      REQUIRE(IsValidUtf8(output.text));
      if (output.match) break;
      at += size;
    }
    REQUIRE(IsValidUtf8(matcher.Finish()));
  }
}

TEST_CASE("without stop strings nothing is held back") {
  StopMatcher matcher({"", ""});
  REQUIRE(matcher.Push("abc").text == "abc");
  REQUIRE(matcher.Finish().empty());
}

TEST_CASE("what was held back comes out at the end, once") {
  StopMatcher matcher({"User:"});
  REQUIRE(matcher.Push("hello Use").text == "hello ");
  REQUIRE(matcher.Finish() == "Use");
  REQUIRE(matcher.Finish().empty());
}

}  // namespace
}  // namespace hadal
