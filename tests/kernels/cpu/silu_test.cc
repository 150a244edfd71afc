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
using testing::SameBits;

TEST_CASE("silu times up equals float64 on every instruction set and odd width") {
  std::mt19937_64 rng(testing::RandomSeed());
  for (const int64_t width : {1, 5, 16, 130, 1408}) {
    const int rows = 23;
    std::vector<float> x = RandomFloats(rows * 2 * width, rng);
    for (float& v : x) v *= 8;
    std::vector<double> expected;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < width; ++i) {
        const double gate = x[static_cast<size_t>(r * 2 * width + i)];
        expected.push_back(gate / (1 + std::exp(-gate)) *
                           x[static_cast<size_t>(r * 2 * width + width + i)]);
      }
    }
    for (const CpuIsa isa : SupportedCpuIsas()) {
      CAPTURE(CpuIsaName(isa), width);
      std::vector<float> y(expected.size());
      for (int64_t r = 0; r < rows; ++r) {
        const float* gate = x.data() + r * 2 * width;
        SiluMulSerial(gate, gate + width, y.data() + r * width, width, isa);
      }
      CHECK(testing::RelativeError(y, expected) < 1e-6);
      // In place, and a part alone.
      const auto r = static_cast<int64_t>(rng() % rows);
      std::vector<float> row = testing::Rows(x, 2 * width, r, 1);
      SiluMulSerial(row.data(), row.data() + width, row.data(), width, isa);
      CHECK(SameBits(row.data(), y.data() + r * width, width));
      const auto skip = static_cast<int64_t>(rng() % static_cast<uint64_t>(width));
      const float* gate = x.data() + r * 2 * width + skip;
      SiluMulSerial(gate, gate + width, row.data(), width - skip, isa);
      CHECK(SameBits(row.data(), y.data() + r * width + skip, width - skip));
    }
  }
}

TEST_CASE("silu saturates without overflow and lets NaN through") {
  const std::vector<float> gate = {-1e30f, -100, -88, 0, 88, 100, 1e30f, NAN};
  for (const CpuIsa isa : SupportedCpuIsas()) {
    CAPTURE(CpuIsaName(isa));
    std::vector<float> up(gate.size(), 1), out(gate.size());
    SiluMulSerial(gate.data(), up.data(), out.data(), static_cast<int64_t>(gate.size()), isa);
    for (size_t i = 0; i < 3; ++i) CHECK(std::abs(out[i]) < 1e-35f);
    CHECK(out[3] == 0);
    for (size_t i = 4; i < 7; ++i) CHECK(out[i] == gate[i]);
    CHECK(std::isnan(out[7]));
  }
}

}  // namespace
}  // namespace hadal
