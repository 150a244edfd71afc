#include <cmath>
#include <random>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/ops.h"
#include "tests/kernels/cpu/bits.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::RandomFloats;
using testing::RelativeError;
using testing::SameBits;

struct NormCase {
  int tokens = 0;
  int64_t dim = 0;
  int64_t x_stride = 0;
  int64_t out_stride = 0;
  bool with_delta = false;
  bool with_out = true;
  float eps = 1e-6f;
};

void CheckNorm(const NormCase& c, std::mt19937_64& rng) {
  CAPTURE(c.tokens, c.dim, c.x_stride, c.out_stride, c.with_delta, c.with_out);
  const std::vector<float> x = RandomFloats(c.tokens * c.x_stride, rng);
  const std::vector<float> delta = RandomFloats(c.tokens * c.dim, rng);
  const std::vector<float> weight = RandomFloats(c.dim, rng);
  const std::vector<float> untouched = RandomFloats(c.tokens * c.out_stride, rng);
  std::vector<double> sums(x.begin(), x.end()), expected(untouched.begin(), untouched.end());
  for (int64_t t = 0; t < c.tokens; ++t) {
    double square = 0;
    for (int64_t i = 0; i < c.dim; ++i) {
      double& v = sums[static_cast<size_t>(t * c.x_stride + i)];
      if (c.with_delta) v += delta[static_cast<size_t>(t * c.dim + i)];
      square += v * v;
    }
    const double factor = 1 / std::sqrt(square / static_cast<double>(c.dim) + c.eps);
    for (int64_t i = 0; c.with_out && i < c.dim; ++i) {
      expected[static_cast<size_t>(t * c.out_stride + i)] =
          sums[static_cast<size_t>(t * c.x_stride + i)] * factor * weight[static_cast<size_t>(i)];
    }
  }
  for (const CpuIsa isa : SupportedCpuIsas()) {
    CAPTURE(CpuIsaName(isa));
    ThreadPool pool(2);
    CpuContext context(&pool, isa);
    std::vector<float> residual = x, out = untouched;
    RmsNorm({.residual = residual.data(), .delta = c.with_delta ? delta.data() : nullptr,
             .weight = weight.data(), .out = c.with_out ? out.data() : nullptr, .tokens = c.tokens,
             .dim = c.dim, .x_stride = c.x_stride, .out_stride = c.out_stride, .eps = c.eps},
            context);
    // What lies between the rows is compared too.
    CHECK(RelativeError(residual, sums) < 1e-6);
    CHECK(RelativeError(out, expected) < 2e-6);
    // From a residual elsewhere, which stays as it is: the same bits.
    std::vector<float> elsewhere = x, sum = x, again = untouched;
    for (size_t i = 0; i < sum.size(); ++i) {
      if (static_cast<int64_t>(i) % c.x_stride < c.dim) sum[i] = NAN;
    }
    RmsNorm({.residual = sum.data(), .from = elsewhere.data(),
             .delta = c.with_delta ? delta.data() : nullptr, .weight = weight.data(),
             .out = c.with_out ? again.data() : nullptr, .tokens = c.tokens, .dim = c.dim,
             .x_stride = c.x_stride, .out_stride = c.out_stride, .eps = c.eps}, context);
    CHECK((SameBits(sum, residual) && SameBits(again, out) && SameBits(elsewhere, x)));
  }
}

TEST_CASE("rms norm equals float64: residual sums, strides, odd widths, no output") {
  std::mt19937_64 rng(testing::RandomSeed());
  for (const int64_t dim : {1, 3, 17, 64, 130, 2048, 7169}) {
    for (const bool delta : {false, true}) {
      CheckNorm({.tokens = 5, .dim = dim, .x_stride = dim, .out_stride = dim, .with_delta = delta},
                rng);
      CheckNorm({.tokens = 3, .dim = dim, .x_stride = dim + 7, .out_stride = dim + 2,
                 .with_delta = delta, .eps = 0.5f}, rng);
    }
    CheckNorm({.tokens = 2, .dim = dim, .x_stride = dim, .out_stride = dim, .with_delta = true,
               .with_out = false}, rng);
  }
}

TEST_CASE("rms norm may write over its input") {
  std::mt19937_64 rng(testing::RandomSeed());
  const int64_t dim = 70;
  const int tokens = 3;
  const std::vector<float> x = RandomFloats(tokens * dim, rng), weight = RandomFloats(dim, rng);
  for (const CpuIsa isa : SupportedCpuIsas()) {
    ThreadPool pool(1);
    CpuContext context(&pool, isa);
    std::vector<float> apart_in = x, apart(x.size()), in_place = x;
    RmsNormParams p{.residual = apart_in.data(), .weight = weight.data(), .out = apart.data(),
                    .tokens = tokens, .dim = dim, .x_stride = dim, .out_stride = dim};
    RmsNorm(p, context);
    p.residual = p.out = in_place.data();
    RmsNorm(p, context);
    CHECK(SameBits(apart, in_place));
  }
}

TEST_CASE("a normed row has the same bits alone, in any batch and on any thread count") {
  std::mt19937_64 rng(testing::RandomSeed());
  const int64_t dim = 1027;
  const int tokens = 67;
  const std::vector<float> x = RandomFloats(tokens * dim, rng),
                           delta = RandomFloats(tokens * dim, rng);
  const std::vector<float> weight = RandomFloats(dim, rng);
  for (const CpuIsa isa : SupportedCpuIsas()) {
    std::vector<float> all;
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      CpuContext context(&pool, isa);
      std::vector<float> residual = x, out(x.size());
      RmsNormParams p{.residual = residual.data(), .delta = delta.data(), .weight = weight.data(),
                      .out = out.data(), .tokens = tokens, .dim = dim, .x_stride = dim,
                      .out_stride = dim};
      RmsNorm(p, context);
      if (all.empty()) all = out;
      CHECK(SameBits(out, all));
      const auto t = static_cast<int64_t>(rng() % tokens);
      std::vector<float> row = testing::Rows(x, dim, t, 1), alone(static_cast<size_t>(dim));
      p.residual = row.data();
      p.delta = delta.data() + t * dim;
      p.out = alone.data();
      p.tokens = 1;
      RmsNorm(p, context);
      CHECK(SameBits(alone, testing::Rows(all, dim, t, 1)));
    }
  }
}

}  // namespace
}  // namespace hadal
