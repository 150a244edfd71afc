#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace hadal {

// The arithmetic of block scales: value = e4m3 x scale, one scale for each block of a matrix. Loops
// run on AVX2 where the machine has it, with the same results.

// out[i] = the bf16 nearest to codes[i] x scale, the product rounded to F32 first. NaN codes become
// 0x7fc0 and 0xffc0.
void CastToBf16(const uint8_t* codes, int64_t count, float scale, bf16_t* out);

// The largest |x|; infinity when one is infinite or NaN.
float LargestMagnitude(const bf16_t* values, int64_t count);
// The scale that takes `largest` to 448, e4m3's largest value; with `power_of_two` the next power
// of two that keeps it within. 1 for a block of zeros.
float BlockScale(float largest, bool power_of_two);
// codes[i] = the e4m3 nearest to values[i] / scale, the quotient rounded to F32 first. REQUIRES: no
// NaN among the quotients.
void CastToF8E4M3(const bf16_t* values, int64_t count, float scale, uint8_t* codes);

}  // namespace hadal
