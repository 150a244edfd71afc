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

// The nearest e4m3 value, ties to even; beyond +-448 that of the same sign; NaN becomes 0x7f.
constexpr uint8_t FloatToF8E4M3(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  if (magnitude >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);  // 448
  if (magnitude < 0x3c800000u) {  // below 2^-6, multiples of 2^-9: the sum is rounded to them
    const float sum = std::bit_cast<float>(magnitude) + 16384.0f;
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(sum) - 0x46800000u));
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120u << 3)));
}

}  // namespace hadal
