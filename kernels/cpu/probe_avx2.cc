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
  __m256i sums[2 * kReadStreams];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const char* p = static_cast<const char*>(data);
  const int64_t stream = bytes / kReadStreams;
  for (int64_t i = 0; i < stream; i += 64) {
#pragma GCC unroll 4
    for (int j = 0; j < kReadStreams; ++j) {
      const char* line = p + j * stream + i;
      _mm_prefetch(line + kReadAhead, _MM_HINT_T0);
      for (int half = 0; half < 2; ++half) {
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line + half * 32));
        sums[2 * j + half] = _mm256_xor_si256(sums[2 * j + half], v);
      }
    }
  }
  __m256i total = _mm256_setzero_si256();
  for (const __m256i& sum : sums) total = _mm256_xor_si256(total, sum);
  return _mm256_cvtss_f32(_mm256_castsi256_ps(total));
}

}  // namespace hadal
