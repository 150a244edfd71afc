#include "kernels/cuda/rows/quantise.cuh"

#include <algorithm>
#include <cmath>
#include <random>
#include <span>

#include "kernels/cuda/experts/split_f8.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/kernels/cuda/device_fixture.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::DeviceFixture;
using testing::GuardedBuffer;

struct Case {
  int source_rows = 1;
  int64_t columns = 128;
  std::vector<int32_t> row_of;  // empty: identity
  int row_count = -1;           // -1: all
  bool silu_mul = false;
};

// Half the distance between e4m3 values around v.
double HalfStep(double v) {
  int exponent;
  std::frexp(v, &exponent);
  return std::ldexp(1.0, std::max(exponent - 1, -6) - 4);
}

// What columns [begin, end) of a row are before they are rounded.
std::vector<double> Expected(const Case& c, const float* row, int64_t begin, int64_t end) {
  std::vector<double> values;
  for (int64_t j = begin; j < end; ++j) {
    double v = row[j];
    if (c.silu_mul) v = v / (1 + std::exp(-v)) * row[c.columns + j];
    values.push_back(v);
  }
  return values;
}

void CheckQuantise(const Case& c, DeviceFixture& device, std::mt19937_64& rng) {
  CAPTURE(c.source_rows, c.columns, c.row_of.size(), c.row_count, c.silu_mul);
  const int64_t width = c.silu_mul ? 2 * c.columns : c.columns, x_stride = width + 8;
  const int rows = c.row_of.empty() ? c.source_rows : static_cast<int>(c.row_of.size());
  const int valid = c.row_count < 0 ? rows : c.row_count;
  const int64_t blocks = (c.columns + 127) / 128, code_stride = (c.columns + 15) / 16 * 16;
  std::vector<float> x = testing::RandomFloats(c.source_rows * x_stride, rng);
  for (int64_t j = 0; j < std::min<int64_t>(128, width); ++j) x[static_cast<size_t>(j)] = 0;
  const GuardedBuffer in(testing::ToAct(x, DType::kBF16)), row_of(c.row_of);
  const GuardedBuffer count(std::vector<int32_t>{valid});
  const GuardedBuffer codes(rows * code_stride), scales(rows * blocks * 4);
  cuda::Quantise({.x = in.as<__nv_bfloat16>(),
                  .x_stride = x_stride,
                  .row_of = c.row_of.empty() ? nullptr : row_of.as<int32_t>(),
                  .row_count = c.row_count < 0 ? nullptr : count.as<int32_t>(),
                  .rows = rows,
                  .columns = c.columns,
                  .silu_mul = c.silu_mul,
                  .codes = codes.as<uint8_t>(),
                  .code_stride = code_stride,
                  .scales = scales.as<float>(),
                  .scale_block_stride = rows},
                 device.context);
  const auto code = codes.Download<uint8_t>();
  const auto scale = scales.Download<float>();
  CHECK(codes.GuardIntact());
  CHECK(scales.GuardIntact());
  int64_t wrong = 0;
  for (int r = 0; r < rows; ++r) {
    const int from = c.row_of.empty() ? r : c.row_of[static_cast<size_t>(r)];
    for (int64_t b = 0; b < blocks; ++b) {
      const float s = scale[static_cast<size_t>(b * rows + r)];
      if (r >= valid) {
        wrong += !std::isnan(s);
        continue;
      }
      const int64_t end = std::min(c.columns, b * 128 + 128);
      const std::vector<double> expected =
          from < 0 ? std::vector<double>(static_cast<size_t>(end - b * 128))
                   : Expected(c, &x[static_cast<size_t>(from * x_stride)], b * 128, end);
      double amax = 1e-4;
      for (const double v : expected) amax = std::max(amax, std::fabs(v));
      wrong += !(std::fabs(s - amax / 448) < 1e-5 * amax / 448);
      for (int64_t j = b * 128; j < end; ++j) {
        const double v = expected[static_cast<size_t>(j - b * 128)] / s;
        const double got = F8E4M3ToFloat(code[static_cast<size_t>(r * code_stride + j)]);
        const bool good = std::fabs(got - v) <= 1.001 * HalfStep(v) + 1e-5;
        if (!good && ++wrong < 5) {
          UNSCOPED_INFO("row " << r << " column " << j << ": " << got << ", not " << v);
        }
      }
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("rows are rounded to e4m3 with a scale per 128 columns") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16);
  for (const bool silu_mul : {false, true}) {
    CheckQuantise({.source_rows = 1, .columns = 8, .silu_mul = silu_mul}, device, rng);
    CheckQuantise({.source_rows = 5, .columns = 320, .silu_mul = silu_mul}, device, rng);
    CheckQuantise(
        {.source_rows = 4, .columns = 256, .row_of = {3, -1, 0, 0, 2}, .silu_mul = silu_mul},
        device, rng);
    CheckQuantise({.source_rows = 7,
                   .columns = 1408,
                   .row_of = {6, 5, 4, 3},
                   .row_count = 3,
                   .silu_mul = silu_mul},
                  device, rng);
    CheckQuantise({.source_rows = 67, .columns = 2048, .row_count = 0, .silu_mul = silu_mul},
                  device, rng);
  }
}

// Values over 40 powers of two, one source or two, `there` rows of the first.
void CheckSplit(int rows, int there, int columns, int lead, bool both, std::mt19937_64& rng) {
  CAPTURE(rows, there, columns, lead, both);
  DeviceFixture device(DType::kBF16, 2 * cuda::SplitRowsBytes(rows, columns));
  std::vector<float> x = testing::RandomFloats(int64_t{rows} * columns, rng);
  for (float& v : x) v = std::ldexp(v, static_cast<int>(rng() % 41) - 20);
  const GuardedBuffer in(testing::ToAct(x, DType::kBF16));  // rounds x too
  const GuardedBuffer count(std::vector<int32_t>{there});
  const cuda::SplitSource source{in.as<__nv_bfloat16>(), rows, count.as<int32_t>(), columns, lead};
  const cuda::SplitSource sources[2] = {source, source};
  cuda::SplitView views[2];
  cuda::SplitRows(std::span(sources).first(both ? 2 : 1), views, device.context);
  REQUIRE(device.Finished());
  const cuda::SplitView& view = views[both ? 1 : 0];
  const int64_t blocks = view.blocks, width = blocks * 128;
  REQUIRE(blocks == (columns + lead + 127) / 128);
  std::vector<uint8_t> codes(static_cast<size_t>(there * 2 * width));
  std::vector<float> scales(static_cast<size_t>(there * blocks));
  cudaMemcpy(codes.data(), view.codes, codes.size(), cudaMemcpyDeviceToHost);
  cudaMemcpy(scales.data(), view.scales, scales.size() * 4, cudaMemcpyDeviceToHost);
  int64_t wrong = 0;
  for (int64_t i = 0; i < there * blocks; ++i) {
    const int64_t r = i / blocks, b = i % blocks;
    const auto at = [&](int64_t c) {  // of the block
      const int64_t column = b * 128 + c - lead;
      const bool inside = column >= 0 && column < columns;
      return inside ? double{x[static_cast<size_t>(r * columns + column)]} : 0.0;
    };
    double most = 0;
    for (int64_t c = 0; c < 128; ++c) most = std::max(most, std::abs(at(c)));
    for (int64_t c = 0; c < 128; ++c) {
      const auto first = static_cast<size_t>(r * 2 * width + b * 128 + c);
      const double high = F8E4M3ToFloat(codes[first]);
      const double low = F8E4M3ToFloat(codes[first + static_cast<size_t>(width)]);
      const double got = scales[static_cast<size_t>(i)] * (high + low / 32);
      const double limit = std::abs(at(c)) * 16384 >= most ? 0 : std::ldexp(most, -22);
      wrong += !(std::abs(got - at(c)) <= limit);
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("rows are split into two e4m3 parts, exactly down to 2^-14 of the largest value") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  CheckSplit(1, 1, 8, 0, false, rng);
  CheckSplit(5, 5, 200, 0, false, rng);
  CheckSplit(13, 9, 192, 64, true, rng);
  CheckSplit(40, 40, 1408, 16, true, rng);
}

}  // namespace
}  // namespace hadal
