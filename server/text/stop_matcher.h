#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hadal {

// Finds stop strings in a stream of text and holds back what may become one. One stream, one
// thread.
class StopMatcher {
 public:
  // Empty strings are ignored.
  explicit StopMatcher(std::vector<std::string> stops);

  struct Output {
    std::string text;                  // safe to show, valid UTF-8 when the input is
    std::optional<std::string> match;  // the stop string that ended the stream
  };
  // The match that is complete first wins, the longest of those that end at the same place: so the
  // outcome does not depend on how the stream is cut. REQUIRES: no match yet.
  Output Push(std::string_view text);
  // What was held back.
  std::string Finish();

 private:
  struct Stop {
    std::string text;
    std::vector<size_t> borders;  // [length + 1] longest proper border of each prefix
    size_t matched;               // bytes of `text` that the stream now ends with
  };
  // Feeds one byte; true: the stream now ends with the stop string.
  static bool Advance(Stop* stop, char c);

  std::vector<Stop> stops_;
  std::string held_;  // as long as the longest `matched`
};

}  // namespace hadal
