// Greedy tokens, log-probabilities, rows that cannot be drawn from.
#include "tests/kernels/cuda/sampling/sample_case.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::DeviceFixture;
using testing::GuardedBuffer;
using testing::kInfinity;
using testing::RandomFloats;
using testing::SampleCase;
using testing::SampleReference;

TEST_CASE(
    "greedy takes the largest logit below the limit, of equals the lower id, with its logprob") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16, 1 << 20);
  for (const int64_t vocab : {1, 5, 63, 1000, 20003, 102400, 163840}) {
    for (const int rows : {1, 3, 50, 140, 512}) {
      if (vocab * rows > 30'000'000) continue;
      const int64_t limit = vocab - vocab / 10;
      std::vector<float> logits = RandomFloats(rows * vocab, rng);
      std::vector<int64_t> best;
      std::vector<SamplingParams> sampling;
      for (int r = 0; r < rows; ++r) {
        float* row = logits.data() + r * vocab;
        best.push_back(static_cast<int64_t>(rng() % static_cast<uint64_t>(limit)));
        row[best.back()] = 9;
        row[best.back() +
            static_cast<int64_t>(rng() % static_cast<uint64_t>(limit - best.back()))] = 9;
        for (int64_t i = limit; i < vocab; ++i) row[i] = 100;
        sampling.push_back({.logprobs = r % 2 - 1});
      }
      const SampleCase c(logits, vocab, limit, device);
      const auto out = c.Run(sampling, std::vector<int32_t>(static_cast<size_t>(rows), 3));
      int wrong = 0;
      for (int r = 0; r < rows; ++r) {
        const SampledToken& token = out.tokens[static_cast<size_t>(r)];
        double expected = 0;
        if (r % 2 == 1) {
          expected = SampleReference(logits.data() + r * vocab, limit, {}).Logprob(token.token);
        }
        if (token.token == best[static_cast<size_t>(r)] && token.non_finite == 0 &&
            std::abs(token.logprob - expected) < 3e-5) {
          continue;
        }
        if (++wrong > 3) continue;
        std::printf("vocab %lld row %d of %d: token %d, not %lld; logprob %g, not %g; bad %d\n",
                    static_cast<long long>(vocab), r, rows, token.token,
                    static_cast<long long>(best[static_cast<size_t>(r)]), token.logprob, expected,
                    token.non_finite);
      }
      CAPTURE(vocab, rows);
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("log-probabilities are of the raw logits, the most likely first, equals by id") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16, 1 << 20);
  for (const int64_t vocab : {3, 700, 102400}) {
    const int64_t limit = vocab - vocab / 70;
    std::vector<float> logits = RandomFloats(vocab, rng);
    for (float& v : logits) v = (vocab == 700 ? std::round(v * 4) : v * 3) + 30;
    for (int64_t i = limit; i < vocab; ++i) logits[static_cast<size_t>(i)] = 1000;
    std::vector<SamplingParams> sampling;
    for (const float temperature : {0.0f, 0.5f, 2.0f, 1e-30f}) {
      for (const int32_t n : {-1, 0, 1, 5, 20}) {
        sampling.push_back({.temperature = temperature, .top_k = 100, .logprobs = n});
      }
    }
    std::vector<float> rows;
    for (size_t r = 0; r < sampling.size(); ++r)
      rows.insert(rows.end(), logits.begin(), logits.end());
    const SampleCase c(rows, vocab, limit, device);
    const auto out = c.Run(sampling, std::vector<int32_t>(sampling.size(), 1));
    for (size_t r = 0; r < sampling.size(); ++r) {
      CAPTURE(vocab, testing::Describe(sampling[r]));
      const SampleReference reference(logits.data(), limit, sampling[r]);
      const SampledToken& token = out.tokens[r];
      CHECK(reference.Wrong(token.token, testing::UniformOf(sampling[r], 1)) == "");
      CHECK(token.logprob ==
            Approx(sampling[r].logprobs < 0 ? 0.0 : reference.Logprob(token.token)).margin(3e-5));
      for (int i = 0; i < kMaxTopLogprobs; ++i) {
        const TokenLogprob& top = out.top[r * kMaxTopLogprobs + static_cast<size_t>(i)];
        if (i >= std::min<int64_t>(sampling[r].logprobs, limit)) {
          REQUIRE(top.token == -1);  // poison: not written
          continue;
        }
        REQUIRE(top.token == reference.Ranked(i));
        CHECK(top.logprob == Approx(reference.Logprob(top.token)).margin(3e-5));
      }
    }
  }
}

TEST_CASE("NaN and infinite logits are reported, for their row alone; -Inf is a logit") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16, 1 << 20);
  const int64_t vocab = 3331, limit = 3330;
  const std::vector<float> good = RandomFloats(vocab, rng);
  std::vector<float> logits;
  std::vector<bool> bad;
  const auto add = [&](size_t index, float value, bool is_bad) {
    logits.insert(logits.end(), good.begin(), good.end());
    logits[logits.size() - good.size() + index] = value;
    bad.push_back(is_bad);
  };
  for (const size_t i : {0, 17, 63, 64, 2048, 3329}) {
    add(i, NAN, true);
    add(i, -NAN, true);
    add(i, kInfinity, true);
    add(i, -kInfinity, false);
  }
  add(3330, NAN, false);  // beyond the limit
  logits.insert(logits.end(), static_cast<size_t>(vocab), -kInfinity);
  bad.push_back(true);
  const SampleCase c(logits, vocab, limit, device);
  for (const float temperature : {0.0f, 1.0f}) {
    for (const int32_t logprobs : {-1, 0, 2}) {
      const SamplingParams s{.temperature = temperature, .logprobs = logprobs};
      const auto out = c.Run({bad.size(), s}, std::vector<int32_t>(bad.size(), 4));
      for (size_t r = 0; r < bad.size(); ++r) {
        CAPTURE(temperature, logprobs, r);
        CHECK(out.tokens[r].non_finite == (bad[r] ? 1 : 0));
        CHECK((out.tokens[r].token >= 0 && out.tokens[r].token < limit));
      }
    }
  }
}

TEST_CASE("nobody's rows are left alone, whatever their logits") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16, 1 << 20);
  const int64_t vocab = 500;
  std::vector<float> logits = RandomFloats(8 * vocab, rng);
  std::fill(logits.begin() + 3 * vocab, logits.end(), NAN);
  const SampleCase c(logits, vocab, vocab, device);
  for (const float temperature : {0.0f, 1.0f}) {
    const auto out = c.Run(std::vector<SamplingParams>(8, {.temperature = temperature}),
                           {5, 6, 7, -1, -1, -1, -1, -1});
    for (size_t r = 0; r < 8; ++r) CHECK(out.tokens[r].non_finite == (r < 3 ? 0 : -1));
  }
}

TEST_CASE("token log-probabilities equal float64; NaN passes through") {
  if (!testing::HaveCudaDevice()) return;
  std::mt19937_64 rng(testing::RandomSeed());
  DeviceFixture device(DType::kBF16, 1 << 20);
  for (const int64_t vocab : {1, 50, 1003, 102400}) {
    for (const int rows : {8, 70, 200}) {
      const int64_t limit = vocab - vocab / 11;
      std::vector<float> logits = RandomFloats(rows * vocab, rng);
      std::vector<int32_t> targets;
      for (int r = 0; r < rows; ++r) {
        targets.push_back(static_cast<int32_t>(rng() % static_cast<uint64_t>(limit)));
        for (int64_t i = 0; i < vocab; ++i) {
          float& v = logits[static_cast<size_t>(r * vocab + i)];
          v = i < limit ? v * 5 + static_cast<float>(r % 40 - 20) * 4 : 1e4f;
        }
      }
      logits[static_cast<size_t>(7 * vocab)] = NAN;
      const SampleCase c(logits, vocab, limit, device);
      const GuardedBuffer device_targets(targets), out(rows * 4);
      cuda::TokenLogprobs({.logits = c.logits().as<float>(),
                           .targets = device_targets.as<int32_t>(),
                           .rows = rows, .vocab = vocab, .vocab_limit = limit,
                           .out = out.as<float>()}, device.context);
      const std::vector<float> got = out.Download<float>();
      CHECK(out.GuardIntact());
      CAPTURE(vocab, rows);
      CHECK(std::isnan(got[7]));
      for (int r = 0; r < rows; ++r) {
        if (r == 7) continue;
        const float* row = logits.data() + r * vocab;
        const double top = *std::max_element(row, row + limit);
        double sum = 0;
        for (int64_t i = 0; i < limit; ++i) sum += std::exp(row[i] - top);
        const auto i = static_cast<size_t>(r);
        CHECK(got[i] == Approx(row[targets[i]] - top - std::log(sum)).margin(5e-5));
      }
    }
  }
}

}  // namespace
}  // namespace hadal
