#pragma once

// What the AVX512_BF16 and AMX kernels take over from others.

#include <cstdint>

#include "kernels/cpu/gemm_kernel.h"

namespace hadal {

inline constexpr GemmShape kGemmShapeAvx512 = {
    .max_rows = 14,
    .row_unit = 1,
    .slice_bytes = kFirstLevelSlice,
    .max_panels = {1, 8, 8, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 2, 2},
};

void GemmF32Avx512(const GemmBlock& block);
void ExpandF8Avx512(const uint8_t* codes, int64_t count, uint16_t* out);
// Needs AVX512_BF16.
void RoundToBf16Avx512(const float* x, int64_t n, void* out);

}  // namespace hadal
