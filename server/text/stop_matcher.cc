#include "server/text/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace hadal {

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  for (std::string& text : stops) {
    if (text.empty()) continue;
    Stop stop{std::move(text), {}, 0};
    stop.borders.assign(stop.text.size() + 1, 0);
    for (size_t i = 1, length = 0; i < stop.text.size(); ++i) {
      while (length > 0 && stop.text[i] != stop.text[length]) length = stop.borders[length];
      if (stop.text[i] == stop.text[length]) ++length;
      stop.borders[i + 1] = length;
    }
    stops_.push_back(std::move(stop));
  }
}

bool StopMatcher::Advance(Stop* stop, char c) {
  while (stop->matched > 0 && stop->text[stop->matched] != c) {
    stop->matched = stop->borders[stop->matched];
  }
  if (stop->text[stop->matched] == c) ++stop->matched;
  return stop->matched == stop->text.size();
}

StopMatcher::Output StopMatcher::Push(std::string_view text) {
  Output output;
  for (const char c : text) {
    held_ += c;
    const Stop* hit = nullptr;
    for (Stop& stop : stops_) {
      if (Advance(&stop, c) && (hit == nullptr || stop.text.size() > hit->text.size())) {
        hit = &stop;
      }
    }
    if (hit != nullptr) {
      output.text = held_.substr(0, held_.size() - hit->text.size());
      output.match = hit->text;
      held_.clear();
      return output;
    }
  }
  size_t keep = 0;
  for (const Stop& stop : stops_) keep = std::max(keep, stop.matched);
  output.text = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return output;
}

std::string StopMatcher::Finish() { return std::exchange(held_, {}); }

}  // namespace hadal
