#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hadal {

// Finds stop strings in a stream of text and holds back what may become one. One stream, one thread.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops);

  struct Output {
    std::string text;                  // safe to show, valid UTF-8 when the input is
    std::optional<std::string> match;  // the stop string that ended the stream
  };
  // The earliest match wins, the longest at the same place. REQUIRES: no match yet.
  Output Push(std::string_view text);
  // What was held back.
  std::string Finish();

 private:
  std::vector<std::string> stops_;
  std::string held_;
};

}  // namespace hadal
