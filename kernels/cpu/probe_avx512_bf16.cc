#include <immintrin.h>

#include "kernels/cpu/probe_kernel.h"

namespace hadal {
namespace {
constexpr int kChains = 28;  // the accumulators of a 14 x 2 block
}  // namespace

double ProbeFlopsAvx512Bf16(int64_t rounds, float* sink) {
  __m512 sums[kChains];
#pragma GCC unroll 28
  for (__m512& sum : sums) {
    sum = _mm512_setzero_ps();
    __asm__("" : "+v"(sum));  // else equal chains are computed once
  }
  __m512 x = _mm512_set1_ps(*sink);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 28
    for (__m512& sum : sums) {
      sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(x));
    }
    __asm__ volatile("" : "+v"(x));
  }
#pragma GCC unroll 28
  for (const __m512& sum : sums) *sink += _mm512_cvtss_f32(sum);
  return 2.0 * 32 * kChains * static_cast<double>(rounds);
}

}  // namespace hadal
