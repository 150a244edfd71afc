#include "common/dummy_checkpoint.h"

#include <cmath>
#include <cstring>

#include "common/tensor_inventory.h"
#include "tests/common/odd_config.h"
#include "tests/support/catch.h"

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

}  // namespace
}  // namespace hadal
