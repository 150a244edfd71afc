#include <cmath>
#include <cstdio>
#include <random>

#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/product_case.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::DeviceFixture;
using testing::GuardedBuffer;
using testing::RandomFloats;

struct NormProductCase {
  int tokens = 1;
  testing::WeightShape weight;
  bool with_delta = true;
  bool apart = true;  // the residual before lies elsewhere
  int64_t pad = 0;    // elements behind each row of the residual
  bool float_out = false;
};

// What a norm and the product behind it read and write.
class NormProduct {
 public:
  NormProduct(const NormProductCase& c, DeviceFixture& device, std::mt19937_64& rng)
      : c_(c),
        device_(device),
        k_(c.weight.k),
        stride_(k_ + c.pad),
        weights_(c.weight, rng),
        packed_(PackCudaWeight({{weights_.source()}}, device.context)),
        x_(RandomFloats(c.tokens * stride_, rng, 3)),
        delta_(RandomFloats(c.tokens * k_, rng)),
        norm_weight_(RandomFloats(k_, rng)),
        from_(x_),
        delta_device_(testing::ToAct(delta_, DType::kBF16)),
        norm_device_(norm_weight_),
        residual_(c.tokens * stride_ * 4),
        out_(c.tokens * k_ * 2),
        y_(c.tokens * (c.weight.n + 8) * DTypeSize(OutType())) {}

  RmsNormParams norm() const {
    return {.residual = c_.apart ? residual_.data() : from_.data(),
            .from = c_.apart ? from_.data() : nullptr,
            .float_residual = true,
            .delta = c_.with_delta ? delta_device_.data() : nullptr,
            .weight = norm_device_.as<float>(),
            .out = out_.data(),
            .tokens = c_.tokens,
            .dim = k_,
            .x_stride = stride_,
            .out_stride = k_,
            .eps = 0.01f};
  }
  MatMulParams product() const {
    return {.x = out_.data(),
            .x_stride = k_,
            .w = packed_.get(),
            .y = y_.data(),
            .y_stride = c_.weight.n + 8,
            .float_out = c_.float_out,
            .m = c_.tokens};
  }

  // Prints what is wrong.
  bool Good() const {
    bool good = device_.Finished();
    const std::vector<float> before = from_.Download<float>(), after = residual_.Download<float>();
    const std::vector<float> y = testing::DownloadFloats(y_, OutType());
    std::vector<float> got;
    std::vector<double> expected;
    for (int t = 0; t < c_.tokens; ++t) {
      const std::vector<float> sum = Sum(t);
      for (int64_t i = 0; i < stride_; ++i) {
        const auto at = static_cast<size_t>(t * stride_ + i);
        const bool added = i < k_ && (c_.apart || c_.with_delta);
        const float stored = c_.apart ? after[at] : before[at];
        const float want = added ? sum[static_cast<size_t>(i)] : c_.apart ? NAN : x_[at];
        good &= std::isnan(want) ? std::isnan(stored) : stored == want;
        if (c_.apart) good &= before[at] == x_[at];
      }
      AddProducts(sum, &expected);
      const float* row = &y[static_cast<size_t>(t * (c_.weight.n + 8))];
      got.insert(got.end(), row, row + c_.weight.n);
      for (int64_t i = c_.weight.n; i < c_.weight.n + 8; ++i) good &= std::isnan(row[i]);
    }
    good &=
        from_.GuardIntact() && residual_.GuardIntact() && y_.GuardIntact() && out_.GuardIntact();
    const double error = testing::RelativeError(got, expected);
    // Inputs and outputs are each rounded to bf16 once.
    const double bound = got.size() < 64 ? 1.2e-2 : 3e-3;
    std::printf("norm, %d tokens, [%lld, %lld] %s: error %.2e, stored %s\n", c_.tokens,
                static_cast<long long>(c_.weight.n), static_cast<long long>(k_),
                DTypeName(c_.weight.dtype).data(), error, good ? "right" : "WRONG");
    return good && error < bound;
  }
  std::vector<float> Outputs() const { return testing::DownloadFloats(y_, OutType()); }

 private:
  DType OutType() const { return c_.float_out ? DType::kF32 : DType::kBF16; }

  std::vector<float> Sum(int t) const {
    std::vector<float> sum(x_.begin() + t * stride_, x_.begin() + t * stride_ + k_);
    for (int64_t i = 0; i < k_ && c_.with_delta; ++i) {
      sum[static_cast<size_t>(i)] += delta_[static_cast<size_t>(t * k_ + i)];
    }
    return sum;
  }
  void AddProducts(const std::vector<float>& x, std::vector<double>* y) const {
    double square = 0;
    for (const float v : x) square += double{v} * v;
    const double factor = 1 / std::sqrt(square / static_cast<double>(k_) + 0.01);
    for (int64_t j = 0; j < c_.weight.n; ++j) {
      double dot = 0;
      for (int64_t i = 0; i < k_; ++i) {
        const auto at = static_cast<size_t>(i);
        dot += weights_.At(j, i) * x[at] * norm_weight_[at];
      }
      y->push_back(dot * factor);
    }
  }

  NormProductCase c_;
  DeviceFixture& device_;
  int64_t k_, stride_;
  testing::RandomWeight weights_;
  std::unique_ptr<PackedWeight> packed_;
  std::vector<float> x_, delta_, norm_weight_;
  GuardedBuffer from_, delta_device_, norm_device_, residual_, out_, y_;
};

bool RunTogether(const NormProduct& p, DeviceFixture& device) {
  return cuda::NormMatMulHeld(p.norm(), cuda::ProductOf(p.product()), device.context);
}

// By the op, and by the one kernel where it exists.
void CheckNormProduct(const NormProductCase& c, bool held, DeviceFixture& device,
                      std::mt19937_64& rng) {
  CAPTURE(c.tokens, c.weight.n, c.weight.k, DTypeName(c.weight.dtype), c.with_delta, c.apart, c.pad,
          c.float_out);
  const NormProduct op(c, device, rng);
  cuda::NormMatMul(op.norm(), op.product(), device.context);
  CHECK(op.Good());
  const NormProduct one(c, device, rng);
  const bool ran = RunTogether(one, device);
  CHECK(ran == held);
  if (!ran) return;
  CHECK(one.Good());
  const std::vector<float> first = one.Outputs();
  if (!c.apart && c.with_delta) return;
  RunTogether(one, device);
  bool same = true;
  const std::vector<float> second = one.Outputs();
  for (size_t i = 0; i < first.size(); ++i) {
    same &= first[i] == second[i] || (std::isnan(first[i]) && std::isnan(second[i]));
  }
  CHECK(same);
}

TEST_CASE("norm and product equal float64, and store the residual", "[held]") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16, 1 << 20);
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    const bool f8 = dtype == DType::kF8E4M3;
    for (int i = 0; i < 12; ++i) {
      const auto below = [&](int64_t n) {
        return static_cast<int64_t>(rng() % static_cast<uint64_t>(n));
      };
      const int64_t k = 8 * (1 + below(256));
      CheckNormProduct({.tokens = 1 + i % 2,
                        .weight = {.n = 1 + below(700), .k = k, .dtype = dtype},
                        .with_delta = i % 4 < 3,
                        .pad = 4 * below(3),
                        .float_out = i % 3 == 0},
                       true, device, rng);
    }
    CheckNormProduct({.tokens = 2, .weight = {.n = 3648, .k = 2048, .dtype = dtype}}, true, device,
                     rng);
    CheckNormProduct({.tokens = 1,
                      .weight = {.n = 100, .k = 512, .dtype = dtype},
                      .with_delta = false,
                      .apart = false},
                     true, device, rng);
    // In place, of more tokens, of too many inputs, of odd strides: norm and product in turn.
    CheckNormProduct({.tokens = 1, .weight = {.n = 100, .k = 512, .dtype = dtype}, .apart = false},
                     false, device, rng);
    CheckNormProduct({.tokens = 3, .weight = {.n = 100, .k = 512, .dtype = dtype}}, false, device,
                     rng);
    CheckNormProduct({.tokens = 2, .weight = {.n = 64, .k = 2560, .dtype = dtype}}, false, device,
                     rng);
    CheckNormProduct({.tokens = 2, .weight = {.n = 64, .k = 256, .dtype = dtype}, .pad = 3}, false,
                     device, rng);
    CheckNormProduct({.tokens = 2, .weight = {.n = 96, .k = 256, .dtype = dtype, .col_offset = 64}},
                     !f8, device, rng);
  }
}

// Layers of nothing but norms and products, whose kernels start before the ones in front of them
// end: the last residual. Of every op that waits for the last one, or of none.
std::vector<float> RunChain(int layers, int tokens,
                            const std::vector<std::unique_ptr<PackedWeight>>& w,
                            const std::vector<float>& x, const GuardedBuffer& norm_weight,
                            bool waits, DeviceFixture& device) {
  const int64_t k = w[0]->k;
  GuardedBuffer first(x), second(tokens * k * 4), normed(tokens * k * 2), delta(tokens * k * 2);
  GuardedBuffer middle(tokens * k * 2);
  void *residual = first.data(), *spare = second.data();
  for (int l = 0; l < layers; ++l) {
    if (l > 0) std::swap(residual, spare);
    const RmsNormParams norm{.residual = residual,
                             .from = l > 0 ? spare : nullptr,
                             .float_residual = true,
                             .delta = l > 0 ? delta.data() : nullptr,
                             .weight = norm_weight.as<float>(),
                             .out = normed.data(),
                             .tokens = tokens,
                             .dim = k,
                             .x_stride = k,
                             .out_stride = k};
    const auto wait = [&] {
      if (waits) HADAL_CUDA(cudaStreamSynchronize(device.context.stream));
    };
    const size_t i = static_cast<size_t>(l) % w.size();
    cuda::NormMatMul(norm,
                     {.x = normed.data(),
                      .x_stride = k,
                      .w = w[i].get(),
                      .y = middle.data(),
                      .y_stride = k,
                      .m = tokens},
                     device.context);
    wait();
    cuda::MatMul({.x = middle.data(),
                  .x_stride = k,
                  .w = w[(i + 1) % w.size()].get(),
                  .y = delta.data(),
                  .y_stride = k,
                  .m = tokens},
                 device.context);
    wait();
  }
  CHECK(device.Finished());
  return (residual == first.data() ? first : second).Download<float>();
}

TEST_CASE("products that start before the kernels in front of them end have the same bits",
          "[held]") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16, 1 << 20);
  constexpr int64_t kDim = 1024;
  const GuardedBuffer norm_weight(RandomFloats(kDim, rng));
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    std::vector<std::unique_ptr<PackedWeight>> weights;
    for (int i = 0; i < 5; ++i) {
      const testing::RandomWeight w({.n = kDim, .k = kDim, .dtype = dtype}, rng);
      weights.push_back(PackCudaWeight({{w.source()}}, device.context));
    }
    for (const int tokens : {1, 2, 3, 8}) {
      std::vector<float> x = RandomFloats(tokens * kDim, rng, 1000);
      const auto run = [&](bool waits) {
        return RunChain(60, tokens, weights, x, norm_weight, waits, device);
      };
      const std::vector<float> expected = run(true);
      bool finite = true, same = true;
      for (const float v : expected) finite &= std::isfinite(v);
      for (int i = 0; i < 5; ++i) same &= run(false) == expected;
      CAPTURE(DTypeName(dtype), tokens);
      CHECK(finite);
      CHECK(same);
    }
  }
}

}  // namespace
}  // namespace hadal
