#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace hadal::testing {

// first, first + 1, ...
inline std::vector<int32_t> Tokens(int32_t first, size_t count) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

}  // namespace hadal::testing
