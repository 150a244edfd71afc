#include "common/dtype.h"

#include <cmath>
#include <limits>
#include <random>

#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

TEST_CASE("float to bf16 rounds to the nearest, ties to even") {
  std::mt19937_64 random(testing::RandomSeed());
  for (int i = 0; i < 200000; ++i) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(random()));
    const bf16_t rounded = FloatToBf16(x);
    if (std::isnan(x)) {
      REQUIRE(std::isnan(Bf16ToFloat(rounded)));
      continue;
    }
    const auto below = static_cast<bf16_t>(std::bit_cast<uint32_t>(x) >> 16);  // towards zero
    const double low = Bf16ToFloat(below);
    const bool overflow = (below & 0x7fff) == 0x7f7f;  // the next step is infinity, worth 2^128
    const double high =
        overflow ? std::copysign(0x1p128, x) : Bf16ToFloat(static_cast<bf16_t>(below + 1));
    const double middle = (low + high) / 2;
    const bool up = std::isinf(x) ? false
                    : std::abs(double{x}) == std::abs(middle)
                        ? (below & 1) != 0
                        : std::abs(double{x}) > std::abs(middle);
    REQUIRE(rounded == static_cast<bf16_t>(below + (up ? 1 : 0)));
  }
  CHECK(FloatToBf16(1.00390625f) == 0x3f80);  // a tie, down to even
  CHECK(FloatToBf16(1.01171875f) == 0x3f82);  // a tie, up to even
  CHECK(Bf16ToFloat(FloatToBf16(std::numeric_limits<float>::max())) ==
        std::numeric_limits<float>::infinity());
}

TEST_CASE("all 256 values of e4m3") {
  for (int code = 0; code < 256; ++code) {
    const int exponent = (code >> 3) & 15;
    const int mantissa = code & 7;
    const float value = F8E4M3ToFloat(static_cast<uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      CHECK(std::isnan(value));
      continue;
    }
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    CHECK(value == (code < 128 ? magnitude : -magnitude));
    CHECK(std::signbit(value) == (code >= 128));
  }
  CHECK(F8E4M3ToFloat(0x7e) == 448.0f);
}

}  // namespace
}  // namespace hadal
