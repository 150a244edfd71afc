#include <cstring>

#include "kernels/cpu/probe_kernel.h"

namespace hadal {
namespace {
using Float4 = float __attribute__((vector_size(16)));
constexpr int kChains = 12;  // as many as registers allow
}  // namespace

double ProbeFlopsPortable(int64_t rounds, float* sink) {
  Float4 sums[kChains];
#pragma GCC unroll 28
  for (Float4& sum : sums) {
    sum = Float4{};
    __asm__("" : "+x"(sum));  // else equal chains are computed once
  }
  Float4 x = {*sink, *sink, *sink, *sink};
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 28
    for (Float4& sum : sums) sum += sum * x;
    __asm__ volatile("" : "+x"(x));
  }
#pragma GCC unroll 28
  for (const Float4& sum : sums) *sink += sum[0] + sum[1] + sum[2] + sum[3];
  return 2.0 * 4 * kChains * static_cast<double>(rounds);
}

float ProbeReadPortable(const void* data, int64_t bytes) {
  Float4 sums[8] = {};
  const char* p = static_cast<const char*>(data);
  for (int64_t i = 0; i < bytes; i += 128) {
    for (int j = 0; j < 8; ++j) {
      Float4 v;
      std::memcpy(&v, p + i + j * 16, sizeof(v));
      sums[j] += v;
    }
  }
  float total = 0;
  for (const Float4& sum : sums) total += sum[0] + sum[1] + sum[2] + sum[3];
  return total;
}

}  // namespace hadal
