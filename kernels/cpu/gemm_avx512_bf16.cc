#include <immintrin.h>

#include "kernels/cpu/gemm_avx512.h"
#include "kernels/cpu/gemm_kernel.h"

namespace hadal {
namespace {

// Block shapes as in the AVX-512 kernels; one instruction takes a pair of inputs of 16 outputs.
constexpr int kMaxRows = kGemmShapeAvx512.max_rows;
constexpr int64_t kPrefetch = 1024;  // bytes ahead in each panel

template <int kRows, int kPanels>
void Bf16Block(const GemmBlock& g) {
  const char* b = static_cast<const char*>(g.b);
  const char* a = static_cast<const char*>(g.a);
  const bool resume = !g.first && g.scale == nullptr;
  __m512 sums[kRows][kPanels];
#pragma GCC unroll 14
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      sums[r][p] = resume ? _mm512_loadu_ps(g.c + r * g.c_stride + p * 16) : _mm512_setzero_ps();
    }
  }
  for (int64_t s = 0; s < g.steps; ++s, b += 64, a += 4) {
    __m512i w[kPanels];
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      if (kRows <= 6) _mm_prefetch(b + p * g.b_stride + kPrefetch, _MM_HINT_T0);
      w[p] = _mm512_loadu_si512(b + p * g.b_stride);
    }
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = _mm512_set1_epi32(*reinterpret_cast<const int*>(a + r * g.a_stride));
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
        sums[r][p] = _mm512_dpbf16_ps(sums[r][p], reinterpret_cast<__m512bh>(x),
                                      reinterpret_cast<__m512bh>(w[p]));
      }
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      float* c = g.c + r * g.c_stride + p * 16;
      if (g.scale != nullptr) {
        const __m512 before = g.first ? _mm512_setzero_ps() : _mm512_loadu_ps(c);
        sums[r][p] =
            _mm512_fmadd_ps(sums[r][p], _mm512_loadu_ps(g.scale + p * g.scale_stride), before);
      }
      _mm512_storeu_ps(c, sums[r][p]);
    }
  }
}

#define HADAL_GEMM_NARROW(R) {Bf16Block<R, 1>, Bf16Block<R, 2>, nullptr, nullptr}
#define HADAL_GEMM_MIDDLE(R) {Bf16Block<R, 1>, Bf16Block<R, 2>, Bf16Block<R, 4>, nullptr}
#define HADAL_GEMM_WIDE(R) {Bf16Block<R, 1>, Bf16Block<R, 2>, Bf16Block<R, 4>, Bf16Block<R, 8>}
constexpr GemmFn kTable[kMaxRows][4] = {
    HADAL_GEMM_WIDE(1),    HADAL_GEMM_WIDE(2),    HADAL_GEMM_MIDDLE(3),  HADAL_GEMM_MIDDLE(4),
    HADAL_GEMM_MIDDLE(5),  HADAL_GEMM_MIDDLE(6),  HADAL_GEMM_NARROW(7),  HADAL_GEMM_NARROW(8),
    HADAL_GEMM_NARROW(9),  HADAL_GEMM_NARROW(10), HADAL_GEMM_NARROW(11), HADAL_GEMM_NARROW(12),
    HADAL_GEMM_NARROW(13), HADAL_GEMM_NARROW(14)};

void Bf16(const GemmBlock& g) { kTable[g.rows - 1][__builtin_ctz(g.panels)](g); }

}  // namespace

void RoundToBf16Avx512(const float* x, int64_t n, void* out) {
  auto* rounded = static_cast<uint16_t*>(out);
  for (int64_t i = 0; i < n; i += 16) {
    const auto mask = static_cast<__mmask16>(n - i < 16 ? (1u << (n - i)) - 1 : 0xffffu);
    const __m256bh value = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + i));
    _mm256_mask_storeu_epi16(rounded + i, mask, reinterpret_cast<__m256i>(value));
  }
}

const GemmKernels kGemmAvx512Bf16 = {
    .bf16_activations = true,
    .bf16_attention = false,
    .bf16_shape = kGemmShapeAvx512,
    .bf16 = Bf16,
    .f32_shape = kGemmShapeAvx512,
    .f32 = GemmF32Avx512,
    .f8_rows = 0,
    .f8 = nullptr,
    .expand_f8 = ExpandF8Avx512,
    .round = RoundToBf16Avx512,
};

}  // namespace hadal
