#include <cmath>
#include <cstring>
#include <string>

#include "kernels/cuda/products/ops.h"
#include "kernels/cuda/rows/ops.h"
#include "kernels/cuda/weights/packed_weight.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/kernels/cuda/compare.h"
#include "tests/kernels/cuda/device_fixture.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal::testing {
namespace {

struct NormCase {
  int tokens;
  WeightShape weight;
  DType act = DType::kBF16;
  bool float_residual = true;
  bool with_delta = true;
  bool apart = true;  // the sum goes to another buffer
  int64_t x_pad = 0;  // behind a row of the residual
};

struct Operands {
  std::vector<float> residual, delta, weight;
  DType residual_type;

  Operands(const NormCase& c, std::mt19937_64& rng)
      : residual(RandomFloats(c.tokens * (c.weight.k + c.x_pad), rng, 3)),
        delta(RandomFloats(c.tokens * c.weight.k, rng, 2)),
        weight(RandomFloats(c.weight.k, rng)),
        residual_type(c.float_residual ? DType::kF32 : c.act) {
    ToAct(residual, residual_type);  // rounds
    ToAct(delta, c.act);
  }
};

struct Result {
  std::vector<float> y, residual;
  bool rounded = false;  // the norm left codes, not its outputs
  bool good = true;
};

// One op or the two of which it is made; memory that they are to write is poisoned.
Result Run(const NormCase& c, Operands& o, bool as_one, DeviceFixture& test,
           const PackedWeight* w) {
  const int64_t n = c.weight.n, k = c.weight.k;
  const GuardedBuffer before(ToAct(o.residual, o.residual_type)), delta(ToAct(o.delta, c.act));
  const GuardedBuffer weight(o.weight), normed(c.tokens * k * DTypeSize(c.act));
  const GuardedBuffer elsewhere(static_cast<int64_t>(o.residual.size()) * 4);
  const GuardedBuffer y(c.tokens * n * DTypeSize(c.act));
  const GuardedBuffer& residual = c.apart ? elsewhere : before;
  const RmsNormParams norm{.residual = residual.data(),
                           .from = c.apart ? before.data() : nullptr,
                           .float_residual = c.float_residual,
                           .delta = c.with_delta ? delta.data() : nullptr,
                           .weight = weight.as<float>(),
                           .out = normed.data(),
                           .tokens = c.tokens,
                           .dim = k,
                           .x_stride = k + c.x_pad,
                           .out_stride = k,
                           .eps = 1e-5f};
  const MatMulParams product{
      .x = normed.data(), .x_stride = k, .w = w, .y = y.data(), .y_stride = n, .m = c.tokens};
  if (as_one) {
    cuda::NormMatMul(norm, product, test.context);
  } else {
    cuda::RmsNorm(norm, test.context);
    cuda::MatMul(product, test.context);
  }
  Result result;
  result.good = test.Finished() && normed.GuardIntact() && y.GuardIntact() &&
                elsewhere.GuardIntact() && before.GuardIntact();
  result.y = DownloadFloats(y, c.act);
  result.rounded = std::isnan(DownloadFloats(normed, c.act).front());
  result.residual = DownloadFloats(residual, o.residual_type);
  return result;
}

// Bit for bit: the same sums and the same roundings.
bool Same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool Holds(const NormCase& c, std::mt19937_64& rng) {
  DeviceFixture test(c.act, int64_t{16} << 20);
  const RandomWeight w(c.weight, rng);
  const auto packed = PackCudaWeight({{w.source()}}, test.context);
  Operands operands(c, rng);
  const Result one = Run(c, operands, true, test, packed.get());
  const Result two = Run(c, operands, false, test, packed.get());
  bool finite = true;
  for (const float v : one.y) finite &= std::isfinite(v);
  const bool good =
      one.good && two.good && finite && Same(one.y, two.y) && Same(one.residual, two.residual);
  // Where it must, or the two would be compared with themselves.
  const bool rounds = c.tokens == 256 && c.weight.dtype == DType::kF8E4M3 && IsHopper();
  if (c.tokens == 256) CHECK(one.rounded == rounds);
  if (!good) {
    const std::string type(DTypeName(c.weight.dtype));
    std::printf("NormMatMul: %d tokens, [%ld, %ld] %s\n", c.tokens, c.weight.n, c.weight.k,
                type.c_str());
  }
  return good;
}

TEST_CASE("NormMatMul has the bits of the norm and the product behind it") {
  if (!HaveCudaDevice()) return;
  std::mt19937_64 rng(RandomSeed());
  constexpr DType kB = DType::kBF16, kF8 = DType::kF8E4M3, kF = DType::kF32;
  std::vector<NormCase> cases;
  for (const DType type : {kB, kF8}) {
    const WeightShape lite{.n = 3648, .k = 2048, .dtype = type};
    for (const int tokens : {1, 7, 64, 68, 256, 257}) cases.push_back({tokens, lite});
    cases.push_back({72, lite, kB, true, false, false});        // the first layer
    cases.push_back({72, lite, kB, true, false, true});         // a copy
    cases.push_back({72, lite, kB, true, true, false});         // in place
    cases.push_back({76, lite, kB, false, false, false, 584});  // rows of something else
    cases.push_back({100, {.n = 260, .k = 1808, .dtype = type}});
    cases.push_back({96, {.n = 512, .k = 7168, .dtype = type}});
    cases.push_back({3, {.n = 77, .k = 136, .dtype = type}});
  }
  cases.push_back({80, {.n = 77, .k = 136, .dtype = kF}, kF});
  for (const NormCase& c : cases) CHECK(Holds(c, rng));
}

}  // namespace
}  // namespace hadal::testing
