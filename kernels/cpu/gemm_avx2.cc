#include <immintrin.h>

#include "kernels/cpu/gemm_kernel.h"

namespace hadal {
namespace {

// A panel is two vectors of eight outputs. 6 rows x 1 panel fill the register file with 12
// accumulators; with fewer rows more panels keep enough independent sums in flight.
constexpr int kMaxRows = 6;
constexpr int64_t kPrefetch = 1024;  // bytes ahead in each panel

template <int kRows, int kPanels>
struct Sums {
  __m256 v[kRows][2 * kPanels];
};

// sum += x * w. As an instruction, since GCC otherwise moves the sums between registers and spills
// four of twelve to the stack.
inline __attribute__((always_inline)) void MultiplyAdd(__m256& sum, __m256 x, __m256 w) {
  __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w));
}

template <int kRows, int kPanels>
inline __attribute__((always_inline)) void Start(const GemmBlock& g, Sums<kRows, kPanels>& sums) {
  const bool resume = !g.first && g.scale == nullptr;
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kPanels; ++i) {
      sums.v[r][i] = resume ? _mm256_loadu_ps(g.c + r * g.c_stride + i * 8) : _mm256_setzero_ps();
    }
  }
}

template <int kRows, int kPanels>
inline __attribute__((always_inline)) void Finish(const GemmBlock& g,
                                                  const Sums<kRows, kPanels>& sums) {
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < 2 * kPanels; ++i) {
      float* c = g.c + r * g.c_stride + i * 8;
      __m256 sum = sums.v[r][i];
      if (g.scale != nullptr) {
        const __m256 scale = _mm256_loadu_ps(g.scale + (i / 2) * g.scale_stride + (i % 2) * 8);
        const __m256 before = g.first ? _mm256_setzero_ps() : _mm256_loadu_ps(c);
        sum = _mm256_fmadd_ps(sum, scale, before);
      }
      _mm256_storeu_ps(c, sum);
    }
  }
}

template <int kRows, int kPanels>
void Bf16Block(const GemmBlock& g) {
  const char* b = static_cast<const char*>(g.b);
  const char* a = static_cast<const char*>(g.a);
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  Sums<kRows, kPanels> sums;
  Start(g, sums);
  for (int64_t s = 0; s < g.steps; ++s, b += 64, a += 8) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const char* panel = b + p * g.b_stride;
      _mm_prefetch(panel + kPrefetch, _MM_HINT_T0);
      const __m256i w0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel));
      const __m256i w1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 32));
      const __m256 even0 = _mm256_castsi256_ps(_mm256_slli_epi32(w0, 16));
      const __m256 even1 = _mm256_castsi256_ps(_mm256_slli_epi32(w1, 16));
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const __m256 x = _mm256_broadcast_ss(reinterpret_cast<const float*>(a + r * g.a_stride));
        MultiplyAdd(sums.v[r][2 * p], x, even0);
        MultiplyAdd(sums.v[r][2 * p + 1], x, even1);
      }
      const __m256 odd0 = _mm256_castsi256_ps(_mm256_and_si256(w0, high));
      const __m256 odd1 = _mm256_castsi256_ps(_mm256_and_si256(w1, high));
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const __m256 x =
            _mm256_broadcast_ss(reinterpret_cast<const float*>(a + r * g.a_stride + 4));
        MultiplyAdd(sums.v[r][2 * p], x, odd0);
        MultiplyAdd(sums.v[r][2 * p + 1], x, odd1);
      }
    }
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
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const char* panel = b + p * g.b_stride;
      _mm_prefetch(panel + kPrefetch, _MM_HINT_T0);
      const __m256 w0 = _mm256_loadu_ps(reinterpret_cast<const float*>(panel));
      const __m256 w1 = _mm256_loadu_ps(reinterpret_cast<const float*>(panel + 32));
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const __m256 x = _mm256_broadcast_ss(reinterpret_cast<const float*>(a + r * g.a_stride));
        MultiplyAdd(sums.v[r][2 * p], x, w0);
        MultiplyAdd(sums.v[r][2 * p + 1], x, w1);
      }
    }
  }
  Finish(g, sums);
}

#define HADAL_GEMM_TABLE(Block)                           \
  {{Block<1, 1>, Block<1, 2>, Block<1, 4>},               \
   {Block<2, 1>, Block<2, 2>, nullptr},                   \
   {Block<3, 1>, Block<3, 2>, nullptr},                   \
   {Block<4, 1>, nullptr, nullptr},                       \
   {Block<5, 1>, nullptr, nullptr},                       \
   {Block<6, 1>, nullptr, nullptr}}
constexpr GemmFn kBf16Table[kMaxRows][3] = HADAL_GEMM_TABLE(Bf16Block);
constexpr GemmFn kF32Table[kMaxRows][3] = HADAL_GEMM_TABLE(F32Block);
#undef HADAL_GEMM_TABLE

void Bf16(const GemmBlock& g) { kBf16Table[g.rows - 1][g.panels / 2](g); }
void F32(const GemmBlock& g) { kF32Table[g.rows - 1][g.panels / 2](g); }

void ExpandF8(const uint8_t* codes, int64_t count, uint16_t* out) {
  // bf16 of m / 8 * 2^-6 for m = 0..7: low bytes, then high bytes.
  const __m256i subnormal = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 0, static_cast<char>(0x80), static_cast<char>(0xc0), 0, 0x20, 0x40, 0x60, 0,
                    0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c));
  const __m256i seven_bits = _mm256_set1_epi16(0x7f);
  for (int64_t i = 0; i < count; i += 16) {
    const __m256i x =
        _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i)));
    const __m256i magnitude = _mm256_and_si256(x, seven_bits);
    const __m256i sign = _mm256_slli_epi16(_mm256_andnot_si256(seven_bits, x), 8);
    __m256i value =
        _mm256_add_epi16(_mm256_slli_epi16(magnitude, 4), _mm256_set1_epi16(120 << 7));
    const __m256i index = _mm256_or_si256(
        magnitude, _mm256_slli_epi16(_mm256_or_si256(magnitude, _mm256_set1_epi16(8)), 8));
    const __m256i small = _mm256_shuffle_epi8(subnormal, index);
    const __m256i is_small = _mm256_cmpgt_epi16(_mm256_set1_epi16(8), magnitude);
    value = _mm256_blendv_epi8(value, small, is_small);
    // 0x7f is NaN: all exponent bits.
    const __m256i is_nan = _mm256_cmpeq_epi16(magnitude, seven_bits);
    value = _mm256_or_si256(value, _mm256_and_si256(is_nan, _mm256_set1_epi16(0x7fc0)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_or_si256(value, sign));
  }
}

constexpr GemmShape kShape = {
    .max_rows = kMaxRows,
    .row_unit = 1,
    .slice_bytes = kFirstLevelSlice,
    .max_panels = {1, 4, 2, 2, 1, 1, 1},
};

}  // namespace

const GemmKernels kGemmAvx2 = {
    .bf16_activations = false,
    .bf16_attention = false,
    .bf16_shape = kShape,
    .bf16 = Bf16,
    .f32_shape = kShape,
    .f32 = F32,
    .f8_rows = 0,
    .f8 = nullptr,
    .expand_f8 = ExpandF8,
    .round = nullptr,
};

}  // namespace hadal
