#include "common/dummy_checkpoint.h"

#include <cmath>
#include <cstring>
#include <set>

#include "common/tensor_inventory.h"
#include "tests/common/odd_config.h"
#include "tests/support/catch.h"
#include "tests/support/no_threads.h"
#include "tests/support/random_elements.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

double Value(const Checkpoint::Entry& entry, int64_t row, int64_t column) {
  const std::byte* at = entry.At(row, column);
  if (*entry.info.dtype == DType::kF8E4M3) return F8E4M3ToFloat(static_cast<uint8_t>(*at));
  if (*entry.info.dtype == DType::kBF16) {
    bf16_t bits;
    std::memcpy(&bits, at, 2);
    return Bf16ToFloat(bits);
  }
  float value;
  std::memcpy(&value, at, 4);
  return value;
}

TEST_CASE("random weights are the same where no thread can be created") {
  const ModelConfig config = testing::OddConfig(DType::kBF16);
  const auto usual = std::move(*MakeDummyCheckpoint(config, 5));
  const testing::NoThreads no_threads;
  const auto alone = std::move(*MakeDummyCheckpoint(config, 5));
  for (const auto& [name, entry] : usual->entries()) {
    const auto bytes = entry.data(), same = alone->Find(name)->data();
    CAPTURE(name);
    REQUIRE(std::memcmp(bytes.data(), same.data(), bytes.size()) == 0);
  }
}

TEST_CASE("random weights are a valid checkpoint of the right spread, the same every time") {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    const ModelConfig config = testing::OddConfig(dtype);
    CAPTURE(DTypeName(dtype));
    const auto checkpoint = MakeDummyCheckpoint(config, 5);
    REQUIRE(checkpoint.ok());
    CHECK(ValidateCheckpoint(config, **checkpoint).ok());
    const auto again = MakeDummyCheckpoint(config, 5);
    const auto other = MakeDummyCheckpoint(config, 6);
    int differing = 0;
    for (const auto& [name, entry] : (*checkpoint)->entries()) {
      CAPTURE(name);
      const auto bytes = entry.data();
      const auto same = (*again)->Find(name)->data(), seeded = (*other)->Find(name)->data();
      REQUIRE(std::memcmp(bytes.data(), same.data(), bytes.size()) == 0);
      differing += std::memcmp(bytes.data(), seeded.data(), bytes.size()) != 0;
    }
    CHECK(differing > 0);

    const Checkpoint::Entry& matrix = *(*checkpoint)->Find("model.layers.0.mlp.down_proj.weight");
    double scale = 1;
    if (dtype == DType::kF8E4M3) {
      scale = Value(*(*checkpoint)->Find("model.layers.0.mlp.down_proj.weight_scale_inv"), 0, 0);
    }
    double sum = 0, squares = 0;
    const auto count = static_cast<double>(matrix.rows.size() * matrix.columns.size());
    for (int64_t r = 0; r < matrix.rows.size(); ++r) {
      for (int64_t c = 0; c < matrix.columns.size(); ++c) {
        const double value = Value(matrix, r, c) * scale;
        sum += value;
        squares += value * value;
      }
    }
    CHECK(std::abs(sum / count) < 0.004);
    CHECK(std::sqrt(squares / count) == Approx(0.02).epsilon(0.1));
    CHECK(Value(*(*checkpoint)->Find("model.norm.weight"), 3, 0) == 1);
  }
}

TEST_CASE("every element of a tensor that says so is that of the sequence; constants do not say so") {
  const uint64_t seed = testing::RandomSeed();
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    const auto checkpoint = MakeDummyCheckpoint(testing::OddConfig(dtype), seed);
    REQUIRE(checkpoint.ok());
    std::set<int64_t> places;
    for (const auto& [name, entry] : (*checkpoint)->entries()) {
      CAPTURE(name);
      const bool constant = name.ends_with("norm.weight") || name.ends_with("_bias") ||
                            name.ends_with("_scale_inv");
      REQUIRE(entry.random.has_value() == !constant);
      if (constant) continue;
      CHECK(entry.random->seed == seed);
      places.insert(entry.random->first);
      const int64_t count = entry.rows.size() * entry.columns.size();
      int64_t wrong = 0;
      for (int64_t i = 0; i < count; ++i) {
        wrong += testing::BitsAt(entry.data().data(), *entry.info.dtype, i) !=
                 testing::RandomElementBits(*entry.info.dtype, seed, entry.random->first + i);
      }
      CHECK(wrong == 0);
    }
    CHECK(places.size() > 10);
  }
}

// Worked out in rational numbers, rounded to the nearest of all values of each type.
TEST_CASE("known elements of the sequences") {
  struct Known {
    uint64_t seed;
    int64_t index;
    uint32_t f32, bf16, e4m3;
  };
  const Known elements[] = {
      {0, 0, 0x3d085267, 0x3d08, 0x5d},
      {0, 1, 0x3cf7bdb5, 0x3cf8, 0x5c},
      {0, 4, 0xbcea5fb5, 0xbcea, 0xdb},
      {5, 1234567, 0x3d47adb3, 0x3d48, 0x62},
      {7, 2132, 0x373a3b32, 0x373a, 0x05},  // a subnormal of e4m3
      {0x123456789abcdef0, (int64_t{1} << 40) + 7, 0x3ca01947, 0x3ca0, 0x58},
      {0xfedcba9876543210, (int64_t{1} << 34) + 6, 0xbc1483fe, 0xbc15, 0xcf},
  };
  for (const Known& e : elements) {
    CAPTURE(e.seed, e.index);
    CHECK(testing::RandomElementBits(DType::kF32, e.seed, e.index) == e.f32);
    CHECK(testing::RandomElementBits(DType::kBF16, e.seed, e.index) == e.bf16);
    CHECK(testing::RandomElementBits(DType::kF8E4M3, e.seed, e.index) == e.e4m3);
  }
}

}  // namespace
}  // namespace hadal
