#include "tools/fp8_blocks.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace hadal {

Bf16Table MakeBf16Table(float scale) {
  Bf16Table table;
  for (int code = 0; code < 256; ++code) {
    const float value = F8E4M3ToFloat(static_cast<uint8_t>(code));
    table[static_cast<size_t>(code)] =
        std::isnan(value) ? FloatToBf16(value) : FloatToBf16(value * scale);
  }
  return table;
}

// Stores are what this loop waits for, so four results share one.
void CastToBf16(const uint8_t* codes, int64_t count, const Bf16Table& table, bf16_t* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, codes + i, 8);
    const auto value = [&](int shift) { return uint64_t{table[(eight >> shift) & 0xff]}; };
    const uint64_t low = value(0) | value(8) << 16 | value(16) << 32 | value(24) << 48;
    const uint64_t high = value(32) | value(40) << 16 | value(48) << 32 | value(56) << 48;
    std::memcpy(out + i, &low, 8);
    std::memcpy(out + i + 4, &high, 8);
  }
  for (; i < count; ++i) out[i] = table[codes[i]];
}

// Magnitudes of finite bf16 numbers are ordered as their bits are.
float LargestMagnitude(const bf16_t* values, int64_t count) {
  uint16_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max<uint16_t>(largest, values[i] & 0x7fffu);
  }
  return Bf16ToFloat(std::min<uint16_t>(largest, 0x7f80u));
}

float BlockScale(float largest, bool power_of_two) {
  if (largest == 0) return 1;
  const float scale = std::max(largest / 448.0f, std::numeric_limits<float>::min());
  if (!power_of_two) return scale;
  const uint32_t bits = std::bit_cast<uint32_t>(scale);
  return std::bit_cast<float>((bits + 0x7fffffu) & 0x7f800000u);
}

void CastToF8E4M3(const bf16_t* values, int64_t count, float scale, uint8_t* codes) {
  for (int64_t i = 0; i < count; ++i) codes[i] = FloatToF8E4M3(Bf16ToFloat(values[i]) / scale);
}

}  // namespace hadal
