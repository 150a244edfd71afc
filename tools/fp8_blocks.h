#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "common/dtype.h"

namespace hadal {

// The arithmetic of block scales: value = e4m3 x scale, one scale for each block of a matrix.

// For every e4m3 code the bf16 nearest to code x scale, the product rounded to F32 first. NaN codes
// stay NaN of their sign.
using Bf16Table = std::array<bf16_t, 256>;
Bf16Table MakeBf16Table(float scale);
// out[i] = table[codes[i]].
void CastToBf16(const uint8_t* codes, int64_t count, const Bf16Table& table, bf16_t* out);

// The largest |x|; infinity when one is infinite or NaN.
float LargestMagnitude(const bf16_t* values, int64_t count);
// The scale that takes `largest` to 448, e4m3's largest value; with `power_of_two` the next power of
// two that keeps it within. 1 for a block of zeros.
float BlockScale(float largest, bool power_of_two);
// codes[i] = e4m3 nearest to values[i] / scale, the quotient rounded to F32 first.
void CastToF8E4M3(const bf16_t* values, int64_t count, float scale, uint8_t* codes);

}  // namespace hadal
