#include "kernels/cpu/packed_weight.h"

#include <random>

#include "kernels/cpu/cpu_backend.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::RandomWeight;

TEST_CASE("a packed weight occupies what was announced, whatever its offset") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(1);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    for (const int64_t k : {1, 66, 67, 128, 129, 300}) {
      for (const int64_t offset : {0, 1, 64, 125}) {
        const RandomWeight weight({.n = 130, .k = k, .dtype = dtype, .col_offset = offset}, rng);
        const auto packed = PackCpuWeight({{weight.source()}}, pool);
        CHECK(packed->bytes == CpuPackedBytes(130, k, dtype));
        CHECK(packed->n == 130);
        CHECK(packed->k == k);
        CHECK(packed->dtype == dtype);
      }
    }
  }
}

TEST_CASE("a backend announces FP8 weights of the blocks that it was made for") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(1);
  for (const int64_t block : {2, 6, 16, 128, 256, 4096}) {
    const auto backend = std::move(*MakeCpuBackend({.threads = 1, .scale_block = block}));
    for (const int64_t k : {1, 67, 300, 1001}) {
      CAPTURE(block, k);
      const RandomWeight weight(
          {.n = 33, .k = k, .dtype = DType::kF8E4M3, .col_offset = 5, .scale_block = block}, rng);
      const auto packed = PackCpuWeight({{weight.source()}}, pool);
      CHECK(packed->bytes == backend->PackedBytes(33, k, DType::kF8E4M3, WeightUse::kStream));
    }
  }
}

TEST_CASE("FP8 stays near one byte an element, bf16 at two") {
  const int64_t elements = 2048 * 7168;
  CHECK(CpuPackedBytes(2048, 7168, DType::kBF16) == 2 * elements);
  CHECK(static_cast<double>(CpuPackedBytes(2048, 7168, DType::kF8E4M3)) <
        1.05 * static_cast<double>(elements));
}

TEST_CASE("HasF8Nan finds a NaN code at any place and nothing else") {
  std::mt19937_64 rng(testing::RandomSeed());
  for (const int64_t n : {0, 1, 7, 8, 9, 31, 100}) {
    std::vector<uint8_t> codes(static_cast<size_t>(n));
    for (uint8_t& code : codes) {
      do code = static_cast<uint8_t>(rng());
      while ((code & 0x7f) == 0x7f);
    }
    CHECK_FALSE(HasF8Nan(codes.data(), n));
    for (size_t i = 0; i < codes.size(); ++i) {
      const uint8_t before = codes[i];
      codes[i] = i % 2 == 0 ? 0x7f : 0xff;
      CHECK(HasF8Nan(codes.data(), n));
      codes[i] = before;
    }
  }
  std::vector<uint8_t> all;
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7f) != 0x7f) all.push_back(static_cast<uint8_t>(code));
  }
  CHECK_FALSE(HasF8Nan(all.data(), static_cast<int64_t>(all.size())));
}

}  // namespace
}  // namespace hadal
