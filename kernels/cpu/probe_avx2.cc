#include <immintrin.h>

#include "kernels/cpu/probe_kernel.h"

namespace hadal {
namespace {
constexpr int kChains = 12;
}  // namespace

double ProbeFlopsAvx2(int64_t rounds, float* sink) {
  __m256 sums[kChains];
#pragma GCC unroll 28
  for (__m256& sum : sums) {
    sum = _mm256_setzero_ps();
    __asm__("" : "+x"(sum));  // else equal chains are computed once
  }
  __m256 x = _mm256_set1_ps(*sink);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 28
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(x, x, sum);
    __asm__ volatile("" : "+x"(x));
  }
#pragma GCC unroll 28
  for (const __m256& sum : sums) *sink += _mm256_cvtss_f32(sum);
  return 2.0 * 8 * kChains * static_cast<double>(rounds);
}

float ProbeReadAvx2(const void* data, int64_t bytes) {
  __m256i sums[8];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const char* p = static_cast<const char*>(data);
  for (int64_t i = 0; i < bytes; i += 256) {
    _mm_prefetch(p + i + 4096, _MM_HINT_T0);
    _mm_prefetch(p + i + 4160, _MM_HINT_T0);
    _mm_prefetch(p + i + 4224, _MM_HINT_T0);
    _mm_prefetch(p + i + 4288, _MM_HINT_T0);
    for (int j = 0; j < 8; ++j) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i + j * 32));
      sums[j] = _mm256_xor_si256(sums[j], v);
    }
  }
  __m256i total = _mm256_setzero_si256();
  for (const __m256i& sum : sums) total = _mm256_xor_si256(total, sum);
  return _mm256_cvtss_f32(_mm256_castsi256_ps(total));
}

}  // namespace hadal
