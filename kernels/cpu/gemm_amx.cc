#include "kernels/cpu/gemm_avx512.h"
#include "kernels/cpu/gemm_kernel.h"

namespace hadal {
namespace {

#include "kernels/cpu/amx_tiles.inc"
#include "kernels/cpu/gemm_amx.inc"

}  // namespace

const GemmKernels kGemmAmx = {
    .bf16_activations = true,
    .bf16_attention = true,
    .bf16_shape = kTileShape,
    .bf16 = TileGemm,
    .f32_shape = kGemmShapeAvx512,
    .f32 = GemmF32Avx512,
    .f8_rows = 0,
    .f8 = nullptr,
    .expand_f8 = ExpandF8Avx512,
    .round = RoundToBf16Avx512,
};

}  // namespace hadal
