#include <algorithm>
#include <cstdio>

#include "kernels/cuda/experts/moe.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/kernels/cuda/compare.h"
#include "tests/kernels/cuda/device_fixture.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using namespace testing;

void CheckAddRows(std::mt19937_64& rng, DType act, int64_t dim, bool accumulate) {
  constexpr int kTokens = 37, kWidth = 3, kRows = 50;
  DeviceFixture fixture(act, 1024);
  std::vector<float> rows = RandomFloats(kRows * dim, rng, 1.0f);
  std::vector<float> out = RandomFloats(kTokens * dim, rng, 1.0f);
  std::vector<int32_t> row_of(kTokens * kWidth);
  for (int32_t& r : row_of) r = static_cast<int32_t>(rng() % (kRows + 10)) - 10;
  for (int32_t& r : row_of) r = std::max(r, -1);
  const GuardedBuffer rows_device(ToAct(rows, act)), row_of_device(row_of);
  const GuardedBuffer out_device(ToAct(out, act));
  std::vector<double> reference(out.size());
  if (accumulate) reference.assign(out.begin(), out.end());
  for (int t = 0; t < kTokens; ++t) {
    for (int j = 0; j < kWidth; ++j) {
      const int32_t r = row_of[static_cast<size_t>(t * kWidth + j)];
      for (int64_t i = 0; r >= 0 && i < dim; ++i) {
        reference[static_cast<size_t>(t * dim + i)] += rows[static_cast<size_t>(r * dim + i)];
      }
    }
  }
  cuda::AddRows({.rows = rows_device.as<void>(),
                 .row_of = row_of_device.as<int32_t>(),
                 .out = out_device.as<void>(),
                 .accumulate = accumulate,
                 .tokens = kTokens,
                 .width = kWidth,
                 .dim = dim},
                fixture.context);
  CHECK(fixture.Finished());
  const double error = RelativeError(DownloadFloats(out_device, act), reference);
  std::printf("add rows dim %lld %s error %.2e\n", static_cast<long long>(dim),
              accumulate ? "added" : "stored", error);
  CHECK(error < (act == DType::kF32 ? 1e-6 : 4e-3));
  CHECK(out_device.GuardIntact());
}

TEST_CASE("cuda add rows: sums in FP32, skipped rows") {
  if (!HaveCudaDevice()) return;
  std::mt19937_64 rng(RandomSeed());
  for (const DType act : {DType::kF32, DType::kBF16}) {
    for (const int64_t dim : {33, 256}) {
      for (const bool accumulate : {false, true}) CheckAddRows(rng, act, dim, accumulate);
    }
  }
}

}  // namespace
}  // namespace hadal
