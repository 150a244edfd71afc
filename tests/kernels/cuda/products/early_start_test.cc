#include <cmath>
#include <random>
#include <utility>

#include "kernels/cuda/products/ops.h"
#include "kernels/cuda/rows/ops.h"
#include "tests/kernels/cuda/products/product_case.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::DeviceFixture;
using testing::GuardedBuffer;
using testing::RandomFloats;

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
    cuda::RmsNorm(norm, device.context);
    wait();
    cuda::MatMul({.x = normed.data(),
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
