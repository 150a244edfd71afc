#include <cmath>
#include <complex>
#include <random>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/ops.h"
#include "tests/kernels/cpu/bits.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::RandomFloats;

struct StoreCase {
  int latent = 0;
  int rope = 0;
  int tokens = 0;
  DType dtype = DType::kF32;
};

void CheckStore(const StoreCase& c, std::mt19937_64& rng) {
  const int64_t dim = c.latent + c.rope, stride = dim + 9;
  const int cache_rows = 2 * c.tokens + 1, max_positions = 50;
  const std::vector<float> kv_a = RandomFloats(c.tokens * stride, rng);
  const std::vector<float> weight = RandomFloats(c.latent, rng);
  const std::vector<float> before = RandomFloats(cache_rows * dim, rng);
  std::vector<float> cos_sin;
  std::uniform_real_distribution<double> random_angle(0, 6.28);
  for (int i = 0; i < max_positions * c.rope / 2; ++i) {
    const double angle = random_angle(rng);
    cos_sin.push_back(static_cast<float>(std::cos(angle)));
    cos_sin.push_back(static_cast<float>(std::sin(angle)));
  }
  std::vector<int64_t> rows;
  std::vector<int32_t> positions;
  std::vector<double> expected(before.begin(), before.end());
  for (int t = 0; t < c.tokens; ++t) {
    rows.push_back(2 * (c.tokens - 1 - t) + 1);
    positions.push_back(static_cast<int32_t>(rng() % max_positions));
    const float* x = kv_a.data() + t * stride;
    double* out = &expected[static_cast<size_t>(rows.back() * dim)];
    double square = 0;
    for (int i = 0; i < c.latent; ++i) square += static_cast<double>(x[i]) * x[i];
    for (int i = 0; i < c.latent; ++i) {
      out[i] = x[i] / std::sqrt(square / c.latent + 1e-3) * weight[static_cast<size_t>(i)];
    }
    for (int i = 0; i < c.rope; i += 2) {
      const float* turn = &cos_sin[static_cast<size_t>(positions.back() * c.rope + i)];
      const auto turned = std::complex<double>(x[c.latent + i], x[c.latent + i + 1]) *
                          std::complex<double>(turn[0], turn[1]);
      out[c.latent + i] = turned.real();
      out[c.latent + i + 1] = turned.imag();
    }
  }
  for (const CpuIsa isa : SupportedCpuIsas()) {
    std::vector<float> first;
    for (const int threads : {1, 2, 3}) {
      CAPTURE(CpuIsaName(isa), c.latent, c.rope, DTypeName(c.dtype), threads);
      ThreadPool pool(threads);
      CpuContext context(&pool, isa);
      std::vector<float> cache = before;
      std::vector<bf16_t> halves;
      for (const float v : before) halves.push_back(FloatToBf16(v));
      const bool f32 = c.dtype == DType::kF32;
      StoreLatent({.kv_a = kv_a.data(),
                   .kv_a_stride = stride,
                   .weight = weight.data(),
                   .eps = 1e-3f,
                   .latent_rank = c.latent,
                   .rope_dim = c.rope,
                   .positions = positions.data(),
                   .cos_sin = cos_sin.data(),
                   .cache_rows = rows.data(),
                   .cache = f32 ? static_cast<void*>(cache.data()) : halves.data(),
                   .cache_dtype = c.dtype,
                   .tokens = c.tokens},
                  context);
      for (size_t i = 0; !f32 && i < halves.size(); ++i) cache[i] = Bf16ToFloat(halves[i]);
      CHECK(testing::RelativeError(cache, expected) < (f32 ? 1e-6 : 4e-3));
      if (first.empty()) first = cache;
      CHECK(testing::SameBits(cache, first));
    }
  }
}

TEST_CASE("a latent row is normed, turned and stored where it belongs, nothing else is touched") {
  std::mt19937_64 rng(testing::RandomSeed());
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    CheckStore({.latent = 512, .rope = 64, .tokens = 70, .dtype = dtype}, rng);
    CheckStore({.latent = 40, .rope = 6, .tokens = 33, .dtype = dtype}, rng);
    CheckStore({.latent = 3, .rope = 2, .tokens = 1, .dtype = dtype}, rng);
  }
}

}  // namespace
}  // namespace hadal
