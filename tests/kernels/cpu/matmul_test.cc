#include <algorithm>
#include <array>
#include <random>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/packed_weight.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::RandomFloats;
using testing::RandomWeight;
using testing::RelativeError;
using testing::WeightShape;

std::vector<float> RunMatMul(const PackedWeight& w, const std::vector<float>& x, int64_t x_stride,
                             int m, CpuContext& context) {
  std::vector<float> y(static_cast<size_t>(m * w.n));
  MatMul({.x = x.data(), .x_stride = x_stride, .w = &w, .y = y.data(), .y_stride = w.n, .m = m},
         context);
  return y;
}

// x w^T in float64; with `rounded`, of activations rounded to bf16 first.
template <typename At>
std::vector<double> Reference(At at, int64_t n, int64_t k, const std::vector<float>& x,
                              int64_t x_stride, int m, bool rounded) {
  std::vector<double> y(static_cast<size_t>(m * n));
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < k; ++i) {
      const double w = at(j, i);
      for (int r = 0; r < m; ++r) {
        const float v = x[static_cast<size_t>(r * x_stride + i)];
        y[static_cast<size_t>(r * n + j)] += w * (rounded ? Bf16ToFloat(FloatToBf16(v)) : v);
      }
    }
  }
  return y;
}

// Values that all kernels see alike, whether they round activations or not.
std::vector<float> RandomBf16s(int64_t count, std::mt19937_64& rng) {
  std::vector<float> values = RandomFloats(count, rng);
  for (float& v : values) v = Bf16ToFloat(FloatToBf16(v));
  return values;
}

void CheckShape(const WeightShape& shape, int m, ThreadPool& pool, std::mt19937_64& rng) {
  CAPTURE(shape.n, shape.k, m, DTypeName(shape.dtype), shape.transposed, shape.row_offset,
          shape.col_offset, shape.scale_block);
  const RandomWeight weight(shape, rng);
  const auto packed = PackCpuWeight({{weight.source()}}, pool);
  const int64_t x_stride = shape.k + 3;
  const std::vector<float> x = RandomFloats(m * x_stride, rng);
  const auto at = [&](int64_t j, int64_t i) { return weight.At(j, i); };
  const bool f32 = shape.dtype == DType::kF32;
  const auto exact = Reference(at, shape.n, shape.k, x, x_stride, m, false);
  const auto rounded = Reference(at, shape.n, shape.k, x, x_stride, m, true);
  for (const CpuIsa isa : SupportedCpuIsas()) {
    CAPTURE(CpuIsaName(isa));
    CpuContext context(&pool, isa);
    const std::vector<float> y = RunMatMul(*packed, x, x_stride, m, context);
    // Of a few outputs all can be near zero by chance, and relative errors large.
    const bool many = shape.n * m >= 64;
    const bool rounds = !f32 && GemmKernelsFor(isa).bf16_activations;
    CHECK(RelativeError(y, rounds ? rounded : exact) < (many ? 2e-6 : 1e-2));
    if (many) CHECK(RelativeError(y, exact) < (f32 ? 1e-5 : 4e-3));
  }
}

TEST_CASE("matmul equals float64 on every instruction set, dtype and odd shape") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(2);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    for (const bool transposed : {false, true}) {
      for (const auto& [n, k] : {std::pair<int64_t, int64_t>{130, 67}, {16, 1}, {1, 300}, {33, 2},
                                 {272, 128}, {67, 515}}) {
        for (const int m : {1, 2, 5, 17, 130}) {
          CheckShape({.n = n, .k = k, .dtype = dtype, .transposed = transposed}, m, pool, rng);
        }
      }
    }
  }
}

// As of the down projection of a rank whose slice of a narrow MLP is empty.
TEST_CASE("matmul over no inputs is zeros") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(2);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    for (const int64_t n : {1, 16, 64, 130}) {
      const RandomWeight weight({.n = n, .k = 0, .dtype = dtype, .col_offset = 1}, rng);
      const auto packed = PackCpuWeight({{weight.source()}}, pool);
      CHECK(packed->bytes == CpuPackedBytes(n, 0, dtype));
      for (const CpuIsa isa : SupportedCpuIsas()) {
        for (const int m : {1, 5, 130}) {
          CAPTURE(DTypeName(dtype), n, CpuIsaName(isa), m);
          CpuContext context(&pool, isa);
          std::vector<float> y = RandomFloats((n + 3) * m, rng);
          std::vector<float> expected = y;
          for (int i = 0; i < m; ++i) std::fill_n(expected.begin() + i * (n + 3), n, 0.0f);
          MatMul({.w = packed.get(), .y = y.data(), .y_stride = n + 3, .m = m}, context);
          CHECK(y == expected);
        }
      }
    }
  }
}

TEST_CASE("an MLP of no width adds nothing") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(2);
  const int64_t dim = 64;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    const RandomWeight gate({.n = 0, .k = dim, .dtype = dtype}, rng);
    const RandomWeight down({.n = dim, .k = 0, .dtype = dtype}, rng);
    const auto w13 = PackCpuWeight({{gate.source(), gate.source()}}, pool);
    const auto w2 = PackCpuWeight({{down.source()}}, pool);
    for (const CpuIsa isa : SupportedCpuIsas()) {
      for (const int tokens : {1, 5, 130}) {
        CAPTURE(DTypeName(dtype), CpuIsaName(isa), tokens);
        CpuContext context(&pool, isa);
        const std::vector<float> x = RandomFloats(tokens * dim, rng);
        std::vector<float> out = RandomFloats(tokens * dim, rng);
        Mlp({.x = x.data(), .w13 = w13.get(), .w2 = w2.get(), .out = out.data(), .tokens = tokens},
            context);
        CHECK(std::all_of(out.begin(), out.end(), [](float v) { return v == 0; }));
      }
    }
  }
}

TEST_CASE("matmul follows FP8 scale blocks that a slice cuts anywhere") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(2);
  std::uniform_int_distribution<int64_t> offset(0, 300), size(1, 400);
  for (int i = 0; i < 30; ++i) {
    const WeightShape shape{.n = size(rng), .k = size(rng), .dtype = DType::kF8E4M3,
                            .transposed = i % 2 == 1, .row_offset = offset(rng),
                            .col_offset = offset(rng),
                            .scale_block = std::array{128, 32, 2, 14, 300}[i % 5]};
    CheckShape(shape, 1 + i % 20, pool, rng);
  }
}

TEST_CASE("matmul of stacked sources is the stack of their matmuls") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(2);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    const int64_t k = 200;
    const RandomWeight a({.n = 37, .k = k, .dtype = dtype, .row_offset = 100, .col_offset = 65},
                         rng);
    const RandomWeight b({.n = 50, .k = k, .dtype = dtype, .row_offset = 7, .col_offset = 65}, rng);
    const auto packed = PackCpuWeight({{a.source(), b.source()}}, pool);
    REQUIRE(packed->n == 87);
    const int m = 3;
    const std::vector<float> x = RandomBf16s(m * k, rng);
    const auto at = [&](int64_t j, int64_t i) { return j < 37 ? a.At(j, i) : b.At(j - 37, i); };
    const auto expected = Reference(at, 87, k, x, k, m, false);
    for (const CpuIsa isa : SupportedCpuIsas()) {
      CpuContext context(&pool, isa);
      CHECK(RelativeError(RunMatMul(*packed, x, k, m, context), expected) < 2e-6);
    }
  }
}

TEST_CASE("every e4m3 code counts exactly") {
  ThreadPool pool(1);
  std::vector<uint8_t> codes(256);
  for (int i = 0; i < 256; ++i) codes[static_cast<size_t>(i)] = static_cast<uint8_t>(i);
  const std::vector<float> scale(2, 1.0f);
  WeightSource source{.data = codes.data(), .dtype = DType::kF8E4M3, .n = 256, .k = 1,
                      .row_stride = 1, .scale = scale.data(), .scale_stride = 1};
  const auto packed = PackCpuWeight({{source}}, pool);
  const std::vector<float> one = {1.0f};
  for (const CpuIsa isa : SupportedCpuIsas()) {
    CpuContext context(&pool, isa);
    const std::vector<float> y = RunMatMul(*packed, one, 1, 1, context);
    for (int i = 0; i < 256; ++i) {
      const float expected = F8E4M3ToFloat(static_cast<uint8_t>(i));
      const float actual = y[static_cast<size_t>(i)];
      CAPTURE(CpuIsaName(isa), i, expected, actual);
      CHECK((std::isnan(expected) ? std::isnan(actual) : actual == expected));
    }
  }
}

TEST_CASE("head matmul multiplies every head by its own matrix") {
  std::mt19937_64 rng(testing::RandomSeed());
  ThreadPool pool(2);
  const int heads = 3, m = 19;
  const int64_t n = 130, k = 67, x_stride = heads * (k + 2) + 1, y_stride = heads * n + 4;
  std::vector<RandomWeight> weights;
  std::vector<StackedSource> sources;
  for (int h = 0; h < heads; ++h) {
    weights.emplace_back(WeightShape{.n = n, .k = k, .transposed = true, .row_offset = h * k}, rng);
    sources.push_back({weights.back().source()});
  }
  const auto packed = PackCpuWeight(sources, pool);
  CHECK(packed->count == heads);
  const std::vector<float> x = RandomBf16s(m * x_stride, rng);
  for (const CpuIsa isa : SupportedCpuIsas()) {
    CpuContext context(&pool, isa);
    std::vector<float> y(static_cast<size_t>(m * y_stride));
    HeadMatMul({.x = x.data(), .x_stride = x_stride, .x_head_stride = k + 2, .w = packed.get(),
                .y = y.data(), .y_stride = y_stride, .y_head_stride = n, .m = m, .heads = heads},
               context);
    for (int h = 0; h < heads; ++h) {
      std::vector<float> head_x, head_y;
      for (int t = 0; t < m; ++t) {
        const auto xs = x.begin() + t * x_stride + h * (k + 2);
        head_x.insert(head_x.end(), xs, xs + k);
        const auto ys = y.begin() + t * y_stride + h * n;
        head_y.insert(head_y.end(), ys, ys + n);
      }
      const auto& weight = weights[static_cast<size_t>(h)];
      const auto at = [&](int64_t j, int64_t i) { return weight.At(j, i); };
      CHECK(RelativeError(head_y, Reference(at, n, k, head_x, k, m, false)) < 2e-6);
    }
  }
}

}  // namespace
}  // namespace hadal
