#include <random>

#include "kernels/cuda/products/ops.h"
#include "tests/kernels/cuda/products/product_case.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::DeviceFixture;
using testing::GuardedBuffer;
using testing::RandomWeight;

struct MlpShape {
  int tokens = 1;
  int64_t dim = 0;
  int64_t width = 0;
  DType dtype = DType::kBF16;
};

// y[t, j] = sum over c of x[t, c] w(j, c).
template <typename At>
std::vector<double> Times(const std::vector<double>& x, int64_t rows, int64_t k, int64_t n, At at) {
  std::vector<double> y(static_cast<size_t>(rows * n));
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t c = 0; c < k; ++c) {
      const double w = at(j, c);
      for (int64_t t = 0; t < rows; ++t) {
        y[static_cast<size_t>(t * n + j)] += w * x[static_cast<size_t>(t * k + c)];
      }
    }
  }
  return y;
}

void CheckMlp(const MlpShape& s, DeviceFixture& device, std::mt19937_64& rng) {
  const RandomWeight gate({.n = s.width, .k = s.dim, .dtype = s.dtype}, rng);
  const RandomWeight up({.n = s.width, .k = s.dim, .dtype = s.dtype}, rng);
  const RandomWeight down({.n = s.dim, .k = s.width, .dtype = s.dtype}, rng);
  const auto w13 = PackCudaWeight({{gate.source(), up.source()}}, device.context);
  const auto w2 = PackCudaWeight({{down.source()}}, device.context);
  std::vector<float> x = testing::RandomFloats(s.tokens * s.dim, rng, 0.02f);
  const DType act = device.context.act;
  const GuardedBuffer in(testing::ToAct(x, act)), out(s.tokens * s.dim * DTypeSize(act));
  const OpLimits limits{.tokens = s.tokens, .dim = s.dim, .mlp_width = s.width};
  GuardedBuffer scratch(cuda::MatMulScratchBytes(limits, act));
  CudaContext context = device.context;
  context.scratch.Reset(scratch.data(), cuda::MatMulScratchBytes(limits, act));
  cuda::Mlp({.x = in.data(),
             .w13 = w13.get(),
             .w2 = w2.get(),
             .width = s.width,
             .out = out.data(),
             .tokens = s.tokens},
            context);

  const std::vector<double> x64(x.begin(), x.end());
  const auto g =
      Times(x64, s.tokens, s.dim, s.width, [&](auto j, auto c) { return gate.At(j, c); });
  auto h = Times(x64, s.tokens, s.dim, s.width, [&](auto j, auto c) { return up.At(j, c); });
  for (size_t i = 0; i < h.size(); ++i) h[i] *= g[i] / (1 + std::exp(-g[i]));
  const auto expected =
      Times(h, s.tokens, s.width, s.dim, [&](auto j, auto c) { return down.At(j, c); });
  const std::vector<float> y = testing::DownloadFloats(out, act);
  const double error = testing::RelativeError(y, expected);
  // Of activations rounded to FP8 in both products an error of 2^-4 / sqrt(12) each and more.
  const bool quantised = s.dtype == DType::kF8E4M3 && s.tokens > 64;
  const double bound = act == DType::kF32 ? 1e-5 : quantised ? 6e-2 : 8e-3;
  std::printf("mlp: %d tokens, dim %lld, width %lld, %s: error %g (bound %g)\n", s.tokens,
              static_cast<long long>(s.dim), static_cast<long long>(s.width),
              DTypeName(s.dtype).data(), error, bound);
  if (!(error < bound)) testing::PrintMismatches(y, expected, s.dim, 5 * bound);
  CAPTURE(s.tokens, s.dim, s.width, DTypeName(s.dtype), DTypeName(act), error);
  CHECK(error < bound);
  CHECK(out.GuardIntact());
  CHECK(scratch.GuardIntact());
}

TEST_CASE("the MLP, all types") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  for (const DType act : {DType::kF32, DType::kBF16}) {
    DeviceFixture device(act);
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
      for (const int tokens : {1, 3, 8, 40, 64, 100, 132}) {
        CheckMlp({.tokens = tokens, .dim = 66, .width = 130, .dtype = dtype}, device, rng);
        CheckMlp({.tokens = tokens, .dim = 256, .width = 384, .dtype = dtype}, device, rng);
        CheckMlp({.tokens = tokens, .dim = 512, .width = 352, .dtype = dtype}, device, rng);
      }
    }
  }
}

TEST_CASE("an MLP of no tokens does nothing") {
  if (!testing::HaveCudaDevice()) return;
  DeviceFixture device(DType::kBF16);
  cuda::Mlp({}, device.context);
  CHECK(cudaStreamSynchronize(device.context.stream) == cudaSuccess);
}

}  // namespace
}  // namespace hadal
