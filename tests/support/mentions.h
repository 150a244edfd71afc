#pragma once

#include <string>
#include <string_view>

namespace hadal::testing {

inline bool Mentions(const std::string& text, std::string_view word) {
  return text.find(word) != std::string::npos;
}

}  // namespace hadal::testing
