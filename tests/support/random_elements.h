#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/random_weights.h"

namespace hadal::testing {

// The bits of the element in the low bytes.
inline uint32_t RandomElementBits(DType dtype, uint64_t seed, int64_t index) {
  if (dtype == DType::kF32) return std::bit_cast<uint32_t>(RandomElement<float>(seed, index));
  if (dtype == DType::kBF16) return RandomElement<bf16_t>(seed, index);
  return RandomElement<uint8_t>(seed, index);
}

// Likewise of element `index` of an array of `dtype`.
inline uint32_t BitsAt(const void* data, DType dtype, int64_t index) {
  const auto size = static_cast<size_t>(DTypeSize(dtype));
  uint32_t bits = 0;
  std::memcpy(&bits, static_cast<const char*>(data) + index * DTypeSize(dtype), size);
  return bits;
}

// `count` elements from `random.first` on, as a host makes them.
inline std::vector<uint8_t> RandomBytes(DType dtype, RandomElements random, int64_t count) {
  const int64_t size = DTypeSize(dtype);
  std::vector<uint8_t> bytes(static_cast<size_t>(count * size));
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = RandomElementBits(dtype, random.seed, random.first + i);
    std::memcpy(bytes.data() + i * size, &bits, static_cast<size_t>(size));
  }
  return bytes;
}

}  // namespace hadal::testing
