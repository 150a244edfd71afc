#include <immintrin.h>

#include "kernels/cpu/probe_kernel.h"

namespace hadal {
namespace {
constexpr int kChains = 28;  // the accumulators of a 14 x 2 block
}  // namespace

double ProbeFlopsAvx512(int64_t rounds, float* sink) {
  __m512 sums[kChains];
#pragma GCC unroll 28
  for (__m512& sum : sums) {
    sum = _mm512_setzero_ps();
    __asm__("" : "+v"(sum));  // else equal chains are computed once
  }
  __m512 x = _mm512_set1_ps(*sink);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 28
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(x, x, sum);
    __asm__ volatile("" : "+v"(x));
  }
#pragma GCC unroll 28
  for (const __m512& sum : sums) *sink += _mm512_cvtss_f32(sum);
  return 2.0 * 16 * kChains * static_cast<double>(rounds);
}

float ProbeReadAvx512(const void* data, int64_t bytes) {
  __m512i sums[kReadStreams];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  const char* p = static_cast<const char*>(data);
  const int64_t stream = bytes / kReadStreams;
  for (int64_t i = 0; i < stream; i += 64) {
#pragma GCC unroll 4
    for (int j = 0; j < kReadStreams; ++j) {
      const char* line = p + j * stream + i;
      _mm_prefetch(line + kReadAhead, _MM_HINT_T0);
      sums[j] = _mm512_xor_si512(sums[j], _mm512_loadu_si512(line));
    }
  }
  __m512i total = _mm512_setzero_si512();
  for (const __m512i& sum : sums) total = _mm512_xor_si512(total, sum);
  return _mm512_cvtss_f32(_mm512_castsi512_ps(total));
}

}  // namespace hadal
