#include "common/philox.h"

#include <cmath>
#include <set>
#include <vector>

#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {
using Words = std::array<uint32_t, 4>;

TEST_CASE("the published known answers of philox4x32-10") {
  CHECK(Philox4x32({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
        Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("draws are uniform in the open interval, differ by seed and counter, and repeat") {
  const uint64_t seed = testing::RandomSeed();
  constexpr int kDraws = 100000;
  constexpr int kBins = 50;
  std::vector<int> bins(kBins);
  std::set<double> seen;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const double u = UniformDraw(seed, i);
    REQUIRE(u > 0);
    REQUIRE(u < 1);
    ++bins[static_cast<size_t>(u * kBins)];
    seen.insert(u);
  }
  CHECK(seen.size() == kDraws);
  double chi2 = 0;
  for (const int n : bins) chi2 += std::pow(n - kDraws / kBins, 2) / (kDraws / kBins);
  CHECK(chi2 < 120);  // 49 degrees of freedom: beyond this once in 10^7 seeds
  CHECK(UniformDraw(seed, 5) == UniformDraw(seed, 5));
  CHECK(UniformDraw(seed, 5) != UniformDraw(seed + 1, 5));
  CHECK(UniformDraw(1, uint64_t{1} << 40) != UniformDraw(1, 0));
  CHECK(UniformDraw(uint64_t{1} << 40, 0) != UniformDraw(0, 0));
}

}  // namespace
}  // namespace hadal
