#include "kernels/cpu/gemm_avx512.h"

#include <immintrin.h>

#include "kernels/cpu/gemm_kernel.h"

namespace hadal {
namespace {

// A panel is one vector. 14 rows x 2 panels fill the register file with 28 accumulators; with fewer
// rows more panels keep enough independent sums in flight.
constexpr int kMaxRows = kGemmShapeAvx512.max_rows;
constexpr int64_t kPrefetch = 1024;  // bytes ahead in each panel
constexpr int64_t kExpandPrefetch = 2048;  // codes: usually a scale block of a panel

template <int kRows, int kPanels>
struct Sums {
  __m512 v[kRows][kPanels];
};

template <int kRows, int kPanels>
inline __attribute__((always_inline)) void Start(const GemmBlock& g, Sums<kRows, kPanels>& sums) {
  const bool resume = !g.first && g.scale == nullptr;
#pragma GCC unroll 14
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      sums.v[r][p] = resume ? _mm512_loadu_ps(g.c + r * g.c_stride + p * 16) : _mm512_setzero_ps();
    }
  }
}

template <int kRows, int kPanels>
inline __attribute__((always_inline)) void Finish(const GemmBlock& g,
                                                  const Sums<kRows, kPanels>& sums) {
#pragma GCC unroll 14
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      float* c = g.c + r * g.c_stride + p * 16;
      __m512 sum = sums.v[r][p];
      if (g.scale != nullptr) {
        const __m512 before = g.first ? _mm512_setzero_ps() : _mm512_loadu_ps(c);
        sum = _mm512_fmadd_ps(sum, _mm512_loadu_ps(g.scale + p * g.scale_stride), before);
      }
      _mm512_storeu_ps(c, sum);
    }
  }
}

// Row r of a block: two bases keep the number of address registers small.
template <int kRows>
struct RowPointers {
  static constexpr int kHalf = (kRows + 1) / 2;
  const char* low;
  const char* high;
  int64_t stride;

  explicit RowPointers(const GemmBlock& g)
      : low(static_cast<const char*>(g.a)), high(low + kHalf * g.a_stride), stride(g.a_stride) {}
  __m512 Broadcast(int r, int64_t offset) const {
    const char* p = r < kHalf ? low + r * stride : high + (r - kHalf) * stride;
    return _mm512_set1_ps(*reinterpret_cast<const float*>(p + offset));
  }
};

template <int kRows, int kPanels>
void Bf16Block(const GemmBlock& g) {
  const char* b = static_cast<const char*>(g.b);
  const int64_t b_stride = g.b_stride;
  RowPointers<kRows> a(g);
  Sums<kRows, kPanels> sums;
  Start(g, sums);
  for (int64_t s = g.steps; s > 0; --s) {
    __m512 w[kPanels];
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      _mm_prefetch(b + p * b_stride + kPrefetch, _MM_HINT_T0);
      w[p] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(b + p * b_stride), 16));
    }
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      const __m512 x = a.Broadcast(r, 0);
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) sums.v[r][p] = _mm512_fmadd_ps(x, w[p], sums.v[r][p]);
    }
    // The odd inputs are the upper halves as they stand.
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      w[p] = _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(0xaaaaaaaau, b + p * b_stride));
    }
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      const __m512 x = a.Broadcast(r, 4);
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) sums.v[r][p] = _mm512_fmadd_ps(x, w[p], sums.v[r][p]);
    }
    b += 64;
    a.low += 8;
    a.high += 8;
  }
  Finish(g, sums);
}

template <int kRows, int kPanels>
void F32Block(const GemmBlock& g) {
  const char* b = static_cast<const char*>(g.b);
  const char* a = static_cast<const char*>(g.a);
  Sums<kRows, kPanels> sums;
  Start(g, sums);
  for (int64_t s = 0; s < g.steps; ++s, b += 64, a += 4) {
    __m512 w[kPanels];
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      if (kRows <= 6) _mm_prefetch(b + p * g.b_stride + kPrefetch, _MM_HINT_T0);
      w[p] = _mm512_loadu_ps(b + p * g.b_stride);
    }
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      const __m512 x = _mm512_set1_ps(*reinterpret_cast<const float*>(a + r * g.a_stride));
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) sums.v[r][p] = _mm512_fmadd_ps(x, w[p], sums.v[r][p]);
    }
  }
  Finish(g, sums);
}

// 32 e4m3 codes to bf16, exactly. Magnitudes are shifted by one, so that NaN is 0, a neighbour of
// the subnormal ones, and one table serves both.
struct F8Expander {
  // NaN, then bf16 of m / 8 * 2^-6 for m = 0..7.
  __m512i special = _mm512_castsi256_si512(
      _mm256_setr_epi16(0x7fc0, 0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60, 0, 0, 0,
                        0, 0, 0, 0));
  __m512i one = _mm512_set1_epi16(1);
  __m512i first_normal = _mm512_set1_epi16(9);
  __m512i seven_bits = _mm512_set1_epi16(0x7f);
  __m512i bias = _mm512_set1_epi16((120 << 7) - (1 << 4));
  __m512i sign = _mm512_set1_epi16(static_cast<short>(0x8000));

  __m512i Load(const void* codes) const {
    const __m512i x =
        _mm512_cvtepi8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(codes)));
    const __m512i shifted = _mm512_and_si512(_mm512_add_epi16(x, one), seven_bits);
    __m512i value = _mm512_add_epi16(_mm512_slli_epi16(shifted, 4), bias);
    const __mmask32 small = _mm512_cmplt_epu16_mask(shifted, first_normal);
    value = _mm512_mask_permutexvar_epi16(value, small, shifted, special);
    // x carries the sign in bits 7 to 15.
    return _mm512_ternarylogic_epi32(value, x, sign, 0xf8);
  }
};

// Bf16Block() of codes that are expanded on the way: for so few rows that each is used once or
// twice.
template <int kRows, int kPanels>
void F8Block(const GemmBlock& g) {
  const char* b = static_cast<const char*>(g.b);
  const int64_t b_stride = g.b_stride;
  const F8Expander expander;
  const __m512i odd = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  RowPointers<kRows> a(g);
  Sums<kRows, kPanels> sums;
  Start(g, sums);
  for (int64_t s = g.steps; s > 0; --s) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      _mm_prefetch(b + p * b_stride + kPrefetch, _MM_HINT_T0);
      const __m512i w = expander.Load(b + p * b_stride);
      const __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
      const __m512 second = _mm512_castsi512_ps(_mm512_and_si512(w, odd));
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        sums.v[r][p] = _mm512_fmadd_ps(a.Broadcast(r, 0), first, sums.v[r][p]);
        sums.v[r][p] = _mm512_fmadd_ps(a.Broadcast(r, 4), second, sums.v[r][p]);
      }
    }
    b += 32;
    a.low += 8;
    a.high += 8;
  }
  Finish(g, sums);
}

#define HADAL_GEMM_NARROW(Block, R) {Block<R, 1>, Block<R, 2>, nullptr, nullptr}
#define HADAL_GEMM_MIDDLE(Block, R) {Block<R, 1>, Block<R, 2>, Block<R, 4>, nullptr}
#define HADAL_GEMM_WIDE(Block, R) {Block<R, 1>, Block<R, 2>, Block<R, 4>, Block<R, 8>}
#define HADAL_GEMM_TABLE(Block)                                                               \
  {HADAL_GEMM_WIDE(Block, 1),    HADAL_GEMM_WIDE(Block, 2),    HADAL_GEMM_MIDDLE(Block, 3),   \
   HADAL_GEMM_MIDDLE(Block, 4),  HADAL_GEMM_MIDDLE(Block, 5),  HADAL_GEMM_MIDDLE(Block, 6),   \
   HADAL_GEMM_NARROW(Block, 7),  HADAL_GEMM_NARROW(Block, 8),  HADAL_GEMM_NARROW(Block, 9),   \
   HADAL_GEMM_NARROW(Block, 10), HADAL_GEMM_NARROW(Block, 11), HADAL_GEMM_NARROW(Block, 12),  \
   HADAL_GEMM_NARROW(Block, 13), HADAL_GEMM_NARROW(Block, 14)}
constexpr GemmFn kBf16Table[kMaxRows][4] = HADAL_GEMM_TABLE(Bf16Block);
constexpr GemmFn kF32Table[kMaxRows][4] = HADAL_GEMM_TABLE(F32Block);

constexpr int kF8Rows = 4;
constexpr GemmFn kF8Table[kF8Rows][4] = {HADAL_GEMM_WIDE(F8Block, 1), HADAL_GEMM_WIDE(F8Block, 2),
                                         HADAL_GEMM_MIDDLE(F8Block, 3),
                                         HADAL_GEMM_MIDDLE(F8Block, 4)};

void F8(const GemmBlock& g) { kF8Table[g.rows - 1][__builtin_ctz(g.panels)](g); }
void Bf16(const GemmBlock& g) { kBf16Table[g.rows - 1][__builtin_ctz(g.panels)](g); }

}  // namespace

void GemmF32Avx512(const GemmBlock& g) { kF32Table[g.rows - 1][__builtin_ctz(g.panels)](g); }

void ExpandF8Avx512(const uint8_t* codes, int64_t count, uint16_t* out) {
  const F8Expander expander;
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    _mm_prefetch(codes + i + kExpandPrefetch, _MM_HINT_T0);
    _mm512_storeu_si512(out + i, expander.Load(codes + i));
    _mm512_storeu_si512(out + i + 32, expander.Load(codes + i + 32));
  }
  if (i < count) _mm512_storeu_si512(out + i, expander.Load(codes + i));
}

const GemmKernels kGemmAvx512 = {
    .bf16_activations = false,
    .bf16_attention = false,
    .bf16_shape = kGemmShapeAvx512,
    .bf16 = Bf16,
    .f32_shape = kGemmShapeAvx512,
    .f32 = GemmF32Avx512,
    .f8_rows = kF8Rows,
    .f8 = F8,
    .expand_f8 = ExpandF8Avx512,
    .round = nullptr,
};

}  // namespace hadal
