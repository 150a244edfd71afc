#pragma once

// What the AVX512_BF16 kernels take over from the AVX-512 ones.

#include <cstdint>

#include "kernels/cpu/gemm_kernel.h"

namespace hadal {

void GemmF32Avx512(const GemmBlock& block);
void ExpandF8Avx512(const uint8_t* codes, int64_t count, uint16_t* out);

}  // namespace hadal
