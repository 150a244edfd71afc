#include <cmath>
#include <random>

#include "kernels/cuda/rows/ops.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/kernels/cuda/device_fixture.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::DeviceFixture;
using testing::GuardedBuffer;
using testing::RandomFloats;

struct NormCase {
  DType act = DType::kF32;
  DType stream = DType::kF32;  // of the residual; float or act
  int tokens = 0;
  int64_t dim = 0;
  int64_t x_stride = 0;
  int64_t out_stride = 0;
  bool with_delta = false;
  bool with_out = true;
  bool in_place = false;
  float eps = 1e-6f;
};

float Rounded(double x, DType act) {
  const auto f = static_cast<float>(x);
  return act == DType::kF32 ? f : Bf16ToFloat(FloatToBf16(f));
}

// Elements that differ by more than `tolerance` of the expected value; NaN is expected as NaN.
int Mismatches(const char* what, const std::vector<float>& got, const std::vector<float>& expected,
               int64_t width, double tolerance) {
  int wrong = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(expected[i]) ? std::isnan(got[i])
                                : std::abs(got[i] - expected[i]) <=
                                      tolerance * (std::abs(expected[i]) + 1e-3)) {
      continue;
    }
    if (++wrong <= 4) {
      std::printf("%s row %zu element %zu: %g, not %g\n", what, i / static_cast<size_t>(width),
                  i % static_cast<size_t>(width), got[i], expected[i]);
    }
  }
  return wrong;
}

// One bf16 rounding more or less at a tie.
double Tolerance(const NormCase& c) { return c.act == DType::kF32 ? 1e-5 : 8e-3; }

// From a residual elsewhere, which stays as it is.
void CheckApart(const NormCase& c, std::vector<float> x, const GuardedBuffer& delta,
                const GuardedBuffer& weight, std::vector<float> sums,
                const std::vector<float>& expected, DeviceFixture& device) {
  const GuardedBuffer from(testing::ToAct(x, c.stream));
  const GuardedBuffer sum(c.tokens * c.x_stride * DTypeSize(c.stream));
  const GuardedBuffer out(c.tokens * c.out_stride * DTypeSize(c.act));
  const std::vector<float> before = DownloadFloats(from, c.stream);
  cuda::RmsNorm({.residual = sum.data(), .from = from.data(),
                 .float_residual = c.stream == DType::kF32,
                 .delta = c.with_delta ? delta.data() : nullptr,
                 .weight = weight.as<float>(), .out = c.with_out ? out.data() : nullptr,
                 .tokens = c.tokens, .dim = c.dim, .x_stride = c.x_stride,
                 .out_stride = c.out_stride, .eps = c.eps}, device.context);
  for (size_t i = 0; i < sums.size(); ++i) {
    if (static_cast<int64_t>(i) % c.x_stride >= c.dim) sums[i] = NAN;
  }
  CHECK(Mismatches("sum apart", DownloadFloats(sum, c.stream), sums, c.x_stride, 1e-6) == 0);
  CHECK(DownloadFloats(from, c.stream) == before);
  CHECK(Mismatches("out", DownloadFloats(out, c.act), expected, c.out_stride, Tolerance(c)) == 0);
  CHECK((from.GuardIntact() && sum.GuardIntact() && out.GuardIntact()));
}

void CheckNorm(const NormCase& c, std::mt19937_64& rng) {
  CAPTURE(DTypeName(c.act), DTypeName(c.stream), c.tokens, c.dim, c.x_stride, c.out_stride,
          c.with_delta, c.with_out, c.in_place);
  DeviceFixture device(c.act, 1 << 20);
  std::vector<float> x = RandomFloats(c.tokens * c.x_stride, rng);
  std::vector<float> delta = RandomFloats(c.tokens * c.dim, rng);
  const std::vector<float> weight = RandomFloats(c.dim, rng);
  const GuardedBuffer device_x(testing::ToAct(x, c.stream));
  const GuardedBuffer device_delta(testing::ToAct(delta, c.act)), device_weight(weight);
  const GuardedBuffer out(c.tokens * c.out_stride * DTypeSize(c.act));

  std::vector<float> sums = x;
  std::vector<float> expected(static_cast<size_t>(c.tokens * c.out_stride), NAN);
  for (int64_t t = 0; t < c.tokens; ++t) {
    double square = 0;
    for (int64_t i = 0; i < c.dim; ++i) {
      float& v = sums[static_cast<size_t>(t * c.x_stride + i)];
      const float d = c.with_delta ? delta[static_cast<size_t>(t * c.dim + i)] : 0.0f;
      v = Rounded(double{v} + d, c.stream);
      square += double{v} * v;
    }
    const double factor = 1 / std::sqrt(square / static_cast<double>(c.dim) + c.eps);
    for (int64_t i = 0; i < c.dim && c.with_out; ++i) {
      expected[static_cast<size_t>(t * c.out_stride + i)] = Rounded(
          sums[static_cast<size_t>(t * c.x_stride + i)] * factor * weight[static_cast<size_t>(i)],
          c.act);
    }
  }
  cuda::RmsNorm({.residual = device_x.data(), .float_residual = c.stream == DType::kF32,
                 .delta = c.with_delta ? device_delta.data() : nullptr,
                 .weight = device_weight.as<float>(),
                 .out = c.in_place ? device_x.data() : c.with_out ? out.data() : nullptr,
                 .tokens = c.tokens, .dim = c.dim, .x_stride = c.x_stride,
                 .out_stride = c.out_stride, .eps = c.eps}, device.context);
  const double tolerance = Tolerance(c);
  if (c.in_place) {
    CHECK(Mismatches("in place", DownloadFloats(device_x, c.act), expected, c.out_stride,
                     tolerance) == 0);
  } else {
    CHECK(Mismatches("sum", DownloadFloats(device_x, c.stream), sums, c.x_stride, 1e-6) == 0);
    CHECK(Mismatches("out", DownloadFloats(out, c.act), expected, c.out_stride, tolerance) == 0);
  }
  CHECK((device_x.GuardIntact() && out.GuardIntact()));
  if (!c.in_place) CheckApart(c, x, device_delta, device_weight, sums, expected, device);
}

TEST_CASE("rms norm equals float64: residual sums, strides, odd widths, no output, in place") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  const std::pair<DType, DType> types[] = {{DType::kF32, DType::kF32},
                                           {DType::kBF16, DType::kBF16},
                                           {DType::kBF16, DType::kF32}};
  for (const auto& [act, stream] : types) {
    for (const int64_t dim : {1, 3, 64, 130, 512, 576, 1536, 2048, 5120, 7168, 7169, 9000}) {
      for (const bool delta : {false, true}) {
        CheckNorm({.act = act, .stream = stream, .tokens = 5, .dim = dim, .x_stride = dim,
                   .out_stride = dim, .with_delta = delta}, rng);
        CheckNorm({.act = act, .stream = stream, .tokens = 3, .dim = dim, .x_stride = dim + 7,
                   .out_stride = dim + 2, .with_delta = delta, .eps = 0.5f}, rng);
        CheckNorm({.act = act, .stream = stream, .tokens = 4, .dim = dim, .x_stride = dim + 64,
                   .out_stride = dim + 8, .with_delta = delta}, rng);
      }
      CheckNorm({.act = act, .stream = stream, .tokens = 2, .dim = dim, .x_stride = dim,
                 .out_stride = dim, .with_delta = true, .with_out = false}, rng);
      if (act != stream) continue;
      CheckNorm({.act = act, .stream = stream, .tokens = 3, .dim = dim, .x_stride = dim,
                 .out_stride = dim, .in_place = true}, rng);
    }
  }
}

}  // namespace
}  // namespace hadal
