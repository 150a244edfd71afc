#include <cmath>
#include <complex>
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

TEST_CASE("rope turns interleaved pairs of every head by the angle of the token's position") {
  std::mt19937_64 rng(testing::RandomSeed());
  for (const int rope_dim : {2, 6, 64}) {
    const int heads = 3, tokens = 41, max_positions = 100, before = 5;
    const int64_t head_stride = rope_dim + 3, x_stride = before + heads * head_stride + 1;
    std::vector<double> angles;
    std::vector<float> cos_sin;
    std::uniform_real_distribution<double> angle(0, 6.28);
    for (int i = 0; i < max_positions * rope_dim / 2; ++i) {
      angles.push_back(angle(rng));
      cos_sin.push_back(static_cast<float>(std::cos(angles.back())));
      cos_sin.push_back(static_cast<float>(std::sin(angles.back())));
    }
    std::vector<int32_t> positions;
    for (int t = 0; t < tokens; ++t)
      positions.push_back(static_cast<int32_t>(rng() % max_positions));
    const std::vector<float> x = RandomFloats(tokens * x_stride, rng);
    std::vector<double> expected(x.begin(), x.end());
    for (int64_t t = 0; t < tokens; ++t) {
      for (int h = 0; h < heads; ++h) {
        for (int i = 0; i < rope_dim / 2; ++i) {
          double* pair =
              &expected[static_cast<size_t>(t * x_stride + before + h * head_stride + 2 * i)];
          const int64_t row = positions[static_cast<size_t>(t)];
          const auto turned = std::complex<double>(pair[0], pair[1]) *
                              std::polar(1.0, angles[static_cast<size_t>(row * rope_dim / 2 + i)]);
          pair[0] = turned.real();
          pair[1] = turned.imag();
        }
      }
    }
    std::vector<float> first;
    for (const CpuIsa isa : SupportedCpuIsas()) {
      for (const int threads : {1, 3}) {
        CAPTURE(CpuIsaName(isa), rope_dim, threads);
        ThreadPool pool(threads);
        CpuContext context(&pool, isa);
        std::vector<float> y = x;
        Rope({.x = y.data() + before, .x_stride = x_stride, .head_stride = head_stride,
              .heads = heads, .rope_dim = rope_dim, .positions = positions.data(),
              .cos_sin = cos_sin.data(), .tokens = tokens}, context);
        CHECK(testing::RelativeError(y, expected) < 1e-6);
        if (first.empty()) first = y;
        CHECK(testing::SameBits(y, first));
      }
    }
  }
}

}  // namespace
}  // namespace hadal
