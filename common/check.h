#pragma once

#include <fmt/format.h>

#include <string>

namespace hadal::internal {
// Logs "file:line: CHECK failed: expr: message" and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const char* expr,
                              const std::string& message);
}  // namespace hadal::internal

// Our own fault: always on, in every build. HADAL_CHECK(cond) or HADAL_CHECK(cond, "rank {}", r).
#define HADAL_CHECK(cond, ...)                                                            \
  do {                                                                                    \
    if (!(cond)) [[unlikely]] {                                                           \
      ::hadal::internal::CheckFailed(__FILE__, __LINE__, #cond,                           \
                                     ::fmt::format("" __VA_ARGS__));                      \
    }                                                                                     \
  } while (0)
