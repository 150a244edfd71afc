#pragma once

#include <cstdint>

namespace hadal {

// a / b rounded up, and a rounded up to a multiple of `unit`; a >= 0, b and unit > 0.
constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t unit) { return CeilDiv(a, unit) * unit; }

}  // namespace hadal
