#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace hadal {

enum class DType : uint8_t { kF32, kBF16, kF8E4M3 };

constexpr int64_t DTypeSize(DType dtype) {
  return dtype == DType::kF32 ? 4 : dtype == DType::kBF16 ? 2 : 1;
}
constexpr std::string_view DTypeName(DType dtype) {
  return dtype == DType::kF32 ? "F32" : dtype == DType::kBF16 ? "BF16" : "F8_E4M3";
}

// A bf16 value is carried as its 16 bits.
using bf16_t = uint16_t;

constexpr float Bf16ToFloat(bf16_t x) { return std::bit_cast<float>(uint32_t{x} << 16); }

// Round to nearest, ties to even; NaN stays NaN.
constexpr bf16_t FloatToBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bf16_t>((bits >> 16) | 0x40u);
  return static_cast<bf16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// OCP e4m3fn: no infinities, NaN is 0x7f and 0xff, smallest subnormal 2^-9, largest value 448.
constexpr float F8E4M3ToFloat(uint8_t x) {
  const uint32_t sign = uint32_t{x & 0x80u} << 24;
  const uint32_t exponent = (x >> 3) & 0xfu;
  const uint32_t mantissa = x & 0x7u;
  if (exponent == 0xf && mantissa == 0x7) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0.001953125f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 120u) << 23) | (mantissa << 20));
}

}  // namespace hadal
