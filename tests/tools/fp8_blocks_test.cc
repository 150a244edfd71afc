#include "tools/fp8_blocks.h"

#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

// The e4m3 value as its definition has it.
double Value(int code) {
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  const double magnitude =
      exponent == 0 ? mantissa * std::exp2(-9) : (1 + mantissa / 8.0) * std::exp2(exponent - 7);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

bool IsNanCode(int code) { return (code & 0x7f) == 0x7f; }

// The finite bf16 nearest to an F32 value, ties to even, by trying both neighbours.
bf16_t Nearest(float value) {
  const auto below = static_cast<bf16_t>(std::bit_cast<uint32_t>(value) >> 16);
  const auto above = static_cast<bf16_t>(below + 1);
  const double down = std::fabs(double{value} - double{Bf16ToFloat(below)});
  const double up = std::fabs(double{Bf16ToFloat(above)} - double{value});
  if (down == up) return (below & 1) == 0 ? below : above;
  return down < up ? below : above;
}

TEST_CASE("codes times scale, for every code") {
  std::mt19937_64 random(testing::RandomSeed());
  std::vector<float> scales = {1, -1, 0.5f, 3.0e-4f, 1e-38f, 0x1p-133f, 1e30f};
  for (int i = 0; i < 50; ++i) {
    scales.push_back(std::exp2(std::uniform_real_distribution<float>(-30, 10)(random)));
  }
  for (const float scale : scales) {
    for (int code = 0; code < 256; ++code) {
      const std::vector<uint8_t> codes(37, static_cast<uint8_t>(code));  // a vector and a rest
      std::vector<bf16_t> out(codes.size());
      CastToBf16(codes.data(), 37, scale, out.data());
      const bf16_t found = out[0];
      if (out != std::vector<bf16_t>(37, found)) FAIL("code " << code << ", scale " << scale);
      if (IsNanCode(code)) {
        CHECK(found == (code == 0x7f ? 0x7fc0 : 0xffc0));
        continue;
      }
      const float product = static_cast<float>(Value(code)) * scale;
      if (found != Nearest(product)) FAIL("code " << code << ", scale " << scale);
    }
  }
}

TEST_CASE("rows of any length") {
  std::mt19937_64 random(testing::RandomSeed() + 1);
  std::vector<uint8_t> codes(300);
  std::vector<bf16_t> values(300);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random());
  for (bf16_t& value : values) value = FloatToBf16(static_cast<float>(random() % 900) - 450);
  for (int64_t count = 0; count <= 300; ++count) {
    std::vector<bf16_t> out(301, 0xabcd);
    CastToBf16(codes.data(), count, 0.37f, out.data());
    std::vector<uint8_t> back(301, 0xab);
    CastToF8E4M3(values.data(), count, 0.73f, back.data());
    for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
      bf16_t one = 0;
      CastToBf16(&codes[i], 1, 0.37f, &one);
      if (out[i] != one) FAIL("at " << i);
      if (back[i] != FloatToF8E4M3(Bf16ToFloat(values[i]) / 0.73f)) FAIL("at " << i);
    }
    CHECK(out[static_cast<size_t>(count)] == 0xabcd);
    CHECK(back[static_cast<size_t>(count)] == 0xab);
  }
}

TEST_CASE("scales that are no numbers") {
  for (const float scale : {INFINITY, -INFINITY, NAN}) {
    const std::vector<uint8_t> codes = {0x00, 0x38, 0xb8, 0x7f, 0xff};
    std::vector<bf16_t> out(5);
    CastToBf16(codes.data(), 5, scale, out.data());
    CHECK(std::isnan(Bf16ToFloat(out[0])));
    CHECK(out[3] == 0x7fc0);
    CHECK(out[4] == 0xffc0);
    if (std::isnan(scale)) continue;
    CHECK(Bf16ToFloat(out[1]) == scale);
    CHECK(Bf16ToFloat(out[2]) == -scale);
  }
}

TEST_CASE("the nearest e4m3 value, ties to even") {
  const auto nearest = [](double value) {
    int best = 0;
    for (int code = 0; code < 0x7f; ++code) {
      const double better = std::fabs(Value(best) - std::fabs(value));
      const double error = std::fabs(Value(code) - std::fabs(value));
      if (error < better || (error == better && code % 2 == 0)) best = code;
    }
    return static_cast<uint8_t>(best | (std::signbit(value) ? 0x80 : 0));
  };
  std::vector<float> values = {0.0f, -0.0f, 448.0f, 449.0f, 1e30f, 1e-30f, INFINITY, 0x1p-10f};
  for (int code = 0; code < 0x7e; ++code) {
    const auto middle = static_cast<float>((Value(code) + Value(code + 1)) / 2);
    for (const float value : {middle, static_cast<float>(Value(code))}) {
      values.push_back(value);
      values.push_back(std::nextafter(value, 1000.0f));
      values.push_back(std::nextafter(value, -1000.0f));
    }
  }
  std::mt19937_64 random(testing::RandomSeed() + 2);
  for (int i = 0; i < 2000; ++i) {
    values.push_back(std::exp2(std::uniform_real_distribution<float>(-14, 9)(random)));
  }
  for (const float value : values) {
    for (const float x : {value, -value}) {
      if (FloatToF8E4M3(x) != nearest(x)) FAIL("value " << x);
      const bf16_t rounded = FloatToBf16(x);
      uint8_t code = 0;
      CastToF8E4M3(&rounded, 1, 1.0f, &code);
      if (code != nearest(Bf16ToFloat(rounded))) FAIL("bf16 " << Bf16ToFloat(rounded));
    }
  }
  CHECK(FloatToF8E4M3(NAN) == 0x7f);
  for (int code = 0; code < 256; ++code) {
    if (IsNanCode(code)) continue;
    CHECK(FloatToF8E4M3(F8E4M3ToFloat(static_cast<uint8_t>(code))) == code);
  }
}

TEST_CASE("scales") {
  CHECK(BlockScale(0, false) == 1);
  CHECK(BlockScale(0, true) == 1);
  CHECK(BlockScale(448, false) == 1);
  CHECK(BlockScale(448, true) == 1);
  CHECK(BlockScale(450, true) == 2);
  CHECK(BlockScale(224, true) == 0.5f);
  CHECK(BlockScale(0x1p-133f, false) > 0);
  std::mt19937_64 random(testing::RandomSeed() + 3);
  for (int i = 0; i < 1000; ++i) {
    const float largest = std::exp2(std::uniform_real_distribution<float>(-100, 100)(random));
    CHECK(BlockScale(largest, false) == largest / 448.0f);
    const float power = BlockScale(largest, true);
    CHECK(std::exp2(std::round(std::log2(power))) == power);
    CHECK(power >= largest / 448.0f);
    CHECK(power / 2 < largest / 448.0f);
  }
  const std::vector<bf16_t> values = {FloatToBf16(-3), FloatToBf16(2), FloatToBf16(0)};
  CHECK(LargestMagnitude(values.data(), 3) == 3);
  for (const bf16_t bad : {0x7f80, 0xff80, 0x7fc1, 0xffff}) {
    const std::vector<bf16_t> with = {FloatToBf16(-3), bad};
    CHECK(std::isinf(LargestMagnitude(with.data(), 2)));
  }
}

}  // namespace
}  // namespace hadal
