#include <random>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/packed_weight.h"
#include "tests/kernels/cpu/bits.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::RandomFloats;
using testing::RandomWeight;
using testing::SameBits;

TEST_CASE("a matmul row has the same bits alone, in any batch, at any place, on any thread count") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool one(1), three(3);
  const int max_m = 512;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    const int64_t n = 211, k = 1301;
    const RandomWeight weight({.n = n, .k = k, .dtype = dtype, .row_offset = 50, .col_offset = 37},
                              rng);
    const auto packed = PackCpuWeight({{weight.source()}}, three);
    const std::vector<float> x = RandomFloats(max_m * k, rng);
    for (const CpuIsa isa : SupportedCpuIsas()) {
      CpuContext single(&one, isa), multi(&three, isa);
      std::vector<float> all(static_cast<size_t>(max_m * n));
      MatMul({.x = x.data(), .x_stride = k, .w = packed.get(), .y = all.data(), .y_stride = n,
              .m = max_m}, multi);
      for (const int m : {1, 2, 3, 4, 5, 6, 7, 9, 13, 14, 15, 16, 29, 129, 300}) {
        const int64_t first = static_cast<int64_t>(rng() % static_cast<uint64_t>(max_m - m + 1));
        CAPTURE(DTypeName(dtype), CpuIsaName(isa), m, first);
        std::vector<float> some(static_cast<size_t>(m * n));
        MatMul({.x = x.data() + first * k, .x_stride = k, .w = packed.get(), .y = some.data(),
                .y_stride = n, .m = m}, m % 2 == 0 ? single : multi);
        CHECK(SameBits(some.data(), all.data() + first * n, m * n));
        MatMulSerial(x.data() + first * k, k, m, *CpuMatrices(packed.get())[0], some.data(), n,
                     *single.gemm,
                     single.shared);
        CHECK(SameBits(some.data(), all.data() + first * n, m * n));
      }
    }
  }
}

TEST_CASE("fast paths stay close to the portable one") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(2);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    const int64_t n = 100, k = 2048, m = 20;
    const RandomWeight weight({.n = n, .k = k, .dtype = dtype}, rng);
    const auto packed = PackCpuWeight({{weight.source()}}, pool);
    // Values that kernels which round activations to bf16 leave alone.
    std::vector<float> x = RandomFloats(m * k, rng);
    for (float& v : x) v = Bf16ToFloat(FloatToBf16(v));
    std::vector<double> portable;
    for (const CpuIsa isa : SupportedCpuIsas()) {
      CpuContext context(&pool, isa);
      std::vector<float> y(static_cast<size_t>(m * n));
      MatMul({.x = x.data(), .x_stride = k, .w = packed.get(), .y = y.data(), .y_stride = n,
              .m = static_cast<int>(m)}, context);
      if (isa == CpuIsa::kPortable) portable.assign(y.begin(), y.end());
      CAPTURE(DTypeName(dtype), CpuIsaName(isa));
      CHECK(testing::RelativeError(y, portable) < 2e-6);
    }
  }
}

}  // namespace
}  // namespace hadal
