#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

#include "common/dtype.h"
#include "common/philox.h"

namespace hadal {

// Weights for benchmarks: for every seed and type an endless sequence of about normal numbers, the
// same bits on every host and device: no product that was rounded is added to anything, so that a
// compiler that fuses the two changes nothing.

// Elements `first`, `first` + 1, ... of the sequence of `seed`.
struct RandomElements {
  uint64_t seed = 0;
  int64_t first = 0;
};

constexpr float kRandomDeviation = 0.02f;  // of F32 and bf16
constexpr float kRandomF8Deviation = 16;   // of e4m3, before its scale

// Elements 2 * pair and 2 * pair + 1 before they are scaled to a type: deviation 1, each a sum of
// four 16-bit numbers, less its mean.
constexpr std::array<float, 2> StandardNormals(uint64_t seed, uint64_t pair) {
  const std::array<uint32_t, 4> bits =
      Philox4x32({static_cast<uint32_t>(pair), static_cast<uint32_t>(pair >> 32), 0, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const auto sum = [](uint32_t a, uint32_t b) {
    return static_cast<int32_t>((a & 0xffff) + (a >> 16) + (b & 0xffff) + (b >> 16)) - 131070;
  };
  constexpr float kUnit = 1.0f / 37837.0f;  // 65536 / sqrt(3)
  return {static_cast<float>(sum(bits[0], bits[1])) * kUnit,
          static_cast<float>(sum(bits[2], bits[3])) * kUnit};
}

// T: float, bf16_t, or uint8_t for e4m3.
template <typename T>
constexpr T FromStandardNormal(float normal) {
  if constexpr (std::is_same_v<T, float>) {
    return normal * kRandomDeviation;
  } else if constexpr (std::is_same_v<T, bf16_t>) {
    return FloatToBf16(normal * kRandomDeviation);
  } else {
    static_assert(std::is_same_v<T, uint8_t>);
    return FloatToF8E4M3(normal * kRandomF8Deviation);
  }
}

template <typename T>
constexpr T RandomElement(uint64_t seed, int64_t index) {
  const std::array<float, 2> pair = StandardNormals(seed, static_cast<uint64_t>(index) / 2);
  return FromStandardNormal<T>(index % 2 == 0 ? pair[0] : pair[1]);
}

}  // namespace hadal
