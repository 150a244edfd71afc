// Draws: every token against the float64 reference's interval for the same uniform number.
#include "tests/kernels/cuda/sampling/sample_case.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::DeviceFixture;
using testing::kInfinity;
using testing::RandomFloats;
using testing::SampleCase;
using testing::SampleReference;

SamplingParams RandomSampling(int filters, std::mt19937_64& rng) {
  std::uniform_real_distribution<float> uniform(0, 1);
  SamplingParams s{.temperature = 0.3f + 2 * uniform(rng), .seed = rng()};
  if (filters & 1) s.top_k = 1 + static_cast<int32_t>(rng() % (rng() % 2 ? 20 : 3000));
  if (filters & 2) s.top_p = 0.05f + 0.9f * uniform(rng);
  if (filters & 4) s.min_p = 0.3f * uniform(rng) * uniform(rng);
  return s;
}

// Draws `draws` tokens from one row under `s`, all in one launch.
void CheckDraws(const std::vector<float>& row, int64_t limit, const SamplingParams& s, int draws,
                DeviceFixture& device) {
  const auto vocab = static_cast<int64_t>(row.size());
  std::vector<float> logits;
  std::vector<int32_t> positions;
  for (int i = 0; i < draws; ++i) {
    logits.insert(logits.end(), row.begin(), row.end());
    positions.push_back(i * 3);
  }
  const SampleCase c(logits, vocab, limit, device);
  const auto out = c.Run(std::vector<SamplingParams>(static_cast<size_t>(draws), s), positions);
  const SampleReference reference(row.data(), limit, s);
  int wrong = 0;
  for (size_t i = 0; i < positions.size(); ++i) {
    const std::string error =
        out.tokens[i].non_finite != 0
            ? "non_finite"
            : reference.Wrong(out.tokens[i].token, testing::UniformOf(s, positions[i]));
    if (error.empty() || ++wrong > 3) continue;
    std::printf("vocab %lld limit %lld, %s: draw %zu is %d: %s\n", static_cast<long long>(vocab),
                static_cast<long long>(limit), testing::Describe(s).c_str(), i, out.tokens[i].token,
                error.c_str());
  }
  CHECK(wrong == 0);
}

TEST_CASE("draws from small vocabularies, every combination of filters") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16, 1 << 20);
  for (int i = 0; i < 120; ++i) {
    const auto vocab = static_cast<int64_t>(1 + rng() % 90);
    std::vector<float> row = RandomFloats(vocab, rng, 1);
    if (vocab > 2) row[rng() % static_cast<uint64_t>(vocab)] = -kInfinity;
    if (i % 3 == 0) {
      for (float& v : row) v = std::round(v * 2) / 2;  // many equals, -0 and +0 among them
    }
    const int64_t limit = vocab - static_cast<int64_t>(vocab > 3 ? rng() % 3 : 0);
    if (*std::max_element(row.begin(), row.begin() + limit) == -kInfinity) continue;
    CheckDraws(row, limit, RandomSampling(i % 8, rng), 1 + static_cast<int>(rng() % 300), device);
  }
}

TEST_CASE("draws from large vocabularies, from flat to peaked") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16, 1 << 20);
  for (const int64_t vocab : {5000, 9001, 102400, 163840}) {
    for (const float spread : {0.0f, 0.01f, 1.0f, 4.0f, 40.0f}) {
      const std::vector<float> row = RandomFloats(vocab, rng, spread);
      for (const int filters : {0, 1, 2, 4, 7}) {
        const int draws = vocab < 10000 ? 150 : filters % 2 ? 3 : 20;
        CheckDraws(row, vocab - 10, RandomSampling(filters, rng), draws, device);
      }
    }
  }
}

TEST_CASE("extreme temperatures; logits of extreme size") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16, 1 << 20);
  for (const float spread : {1.0f, 1e-30f, 1e30f}) {
    const std::vector<float> row = RandomFloats(3000, rng, spread);
    for (const float temperature : {1e-42f, 1e-6f, 1e6f, 1e30f}) {
      for (SamplingParams s : {SamplingParams{}, {.top_p = 0.5f}, {.top_k = 7}, {.min_p = 0.5f}}) {
        s.temperature = temperature;
        CheckDraws(row, 2990, s, 40, device);
      }
    }
  }
}

TEST_CASE("a draw depends on logits, seed and position alone: the same bits in any batch") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16, 1 << 20);
  const int rows = 300;
  const int64_t vocab = 5003, limit = 5000;
  const std::vector<float> logits = RandomFloats(rows * vocab, rng, 2);
  std::vector<SamplingParams> sampling;
  std::vector<int32_t> positions;
  for (int r = 0; r < rows; ++r) {
    sampling.push_back(RandomSampling(r % 8, rng));
    if (r % 5 == 0) sampling.back().temperature = 0;
    positions.push_back(static_cast<int32_t>(rng() % 5000));
  }
  const SampleCase c(logits, vocab, limit, device);
  const auto all = c.Run(sampling, positions);
  for (const int batch : {1, 9, 40, 130}) {
    for (int first = 0; first + batch <= rows; first += std::max(batch, 17)) {
      const auto part =
          c.Run({sampling.begin() + first, sampling.begin() + first + batch},
                {positions.begin() + first, positions.begin() + first + batch}, first);
      for (int i = 0; i < batch; ++i) {
        REQUIRE(part.tokens[static_cast<size_t>(i)].token ==
                all.tokens[static_cast<size_t>(first + i)].token);
      }
    }
  }
}

}  // namespace
}  // namespace hadal
