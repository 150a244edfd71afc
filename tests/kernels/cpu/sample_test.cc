#include <limits>
#include <random>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/ops.h"
#include "tests/kernels/cpu/bits.h"
#include "tests/kernels/cpu/logits_case.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::FilterInDouble;
using testing::Filtered;
using testing::RandomFloats;
using testing::RunSample;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

int32_t SampleOne(const std::vector<float>& logits, int64_t limit, const SamplingParams& s,
                  int32_t position, CpuIsa isa) {
  const auto vocab = static_cast<int64_t>(logits.size());
  return RunSample(logits, vocab, limit, {s}, {position}, 1, isa)[0].token;
}

// How often each id came out of many draws from one row.
std::vector<int> Count(const std::vector<float>& logits, int64_t limit, SamplingParams s, int draws,
                       bool vary_seed, CpuIsa isa) {
  ThreadPool pool(1);
  CpuContext context(&pool, isa);
  std::vector<int> counts(logits.size());
  const uint64_t seed = s.seed;
  for (int i = 0; i < draws; ++i) {
    if (vary_seed) s.seed = seed + static_cast<uint64_t>(i);
    const int32_t position = vary_seed ? 5 : i;
    SampledToken result;
    TokenLogprob top[kMaxTopLogprobs];
    Sample({.logits = logits.data(), .rows = 1, .vocab = static_cast<int64_t>(logits.size()),
            .vocab_limit = limit, .sampling = &s, .positions = &position, .out = &result, .top = top},
           context);
    ++counts[static_cast<size_t>(result.token)];
  }
  return counts;
}

// Draws follow `p`: nothing outside its support, everything likely is met, and chi-square over the
// ids with enough draws (the others pooled) is within what chance gives in all but 1e-8 of runs.
void CheckCounts(const std::vector<int>& counts, const std::vector<double>& p, int draws) {
  double chi_square = 0, pooled = 0, pooled_p = 0;
  int cells = 0;
  const auto add = [&](double count, double expected) {
    chi_square += (count - expected) * (count - expected) / expected;
    ++cells;
  };
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] == 0) {
      CAPTURE(i);
      CHECK(counts[i] == 0);
    } else if (p[i] * draws >= 25) {
      add(counts[i], p[i] * draws);
    } else {
      pooled += counts[i];
      pooled_p += p[i];
    }
  }
  if (pooled_p * draws >= 25) add(pooled, pooled_p * draws);
  const double degrees = cells - 1;
  CAPTURE(degrees);
  CHECK(chi_square < degrees + 6 * std::sqrt(2 * degrees) + 36);
}

TEST_CASE("greedy takes the largest logit below the limit, of equals the lower id") {
  std::mt19937_64 rng(testing::RandomSeed());
  for (const int64_t vocab : {1, 63, 64, 65, 1000, 20000}) {
    std::vector<float> logits = RandomFloats(vocab, rng);
    const int64_t limit = vocab - vocab / 10;
    const auto best = static_cast<int64_t>(rng() % static_cast<uint64_t>(limit));
    logits[static_cast<size_t>(best)] = 9;
    logits[static_cast<size_t>(best + static_cast<int64_t>(
        rng() % static_cast<uint64_t>(limit - best)))] = 9;
    for (int64_t i = limit; i < vocab; ++i) logits[static_cast<size_t>(i)] = 100;
    for (const CpuIsa isa : SupportedCpuIsas()) {
      CAPTURE(CpuIsaName(isa), vocab);
      CHECK(SampleOne(logits, limit, {}, 3, isa) == best);
      // However small the temperature, it is not zero: equals share.
      const int32_t cold = SampleOne(logits, limit, {.temperature = 1e-42f}, 3, isa);
      CHECK(logits[static_cast<size_t>(cold)] == 9);
      CHECK(SampleOne(logits, limit, {.temperature = 1e30f, .top_k = 1}, 3, isa) == best);
    }
  }
}

TEST_CASE("draws follow the filtered distribution, in the set and in frequency") {
  std::mt19937_64 rng(testing::RandomSeed());
  std::uniform_real_distribution<float> uniform(0, 1);
  const int draws = 4000;
  int cases = 0;
  while (cases < 40) {
    const auto vocab = static_cast<int64_t>(3 + rng() % 90);
    std::vector<float> logits = RandomFloats(vocab, rng);
    const int64_t limit = vocab - static_cast<int64_t>(rng() % 2);
    logits[rng() % static_cast<uint64_t>(limit)] = -kInfinity;
    SamplingParams s{.temperature = 0.3f + 2 * uniform(rng), .seed = rng()};
    const int filters = cases % 8;
    if (filters & 1) s.top_k = 1 + static_cast<int32_t>(rng() % 20);
    if (filters & 2) s.top_p = 0.05f + 0.9f * uniform(rng);
    if (filters & 4) s.min_p = 0.3f * uniform(rng);
    const Filtered expected = FilterInDouble(logits, limit, s);
    if (!(expected.margin > 1e-5)) continue;
    const auto isas = SupportedCpuIsas();
    const CpuIsa isa = isas[static_cast<size_t>(cases / 8) % isas.size()];
    CAPTURE(CpuIsaName(isa), vocab, limit, s.temperature, s.top_k, s.top_p, s.min_p);
    CheckCounts(Count(logits, limit, s, draws, cases % 3 == 0, isa), expected.p, draws);
    ++cases;
  }
}

TEST_CASE("draws from a large vocabulary follow the filtered distribution") {
  std::mt19937_64 rng(testing::RandomSeed());
  const int64_t vocab = 9001, limit = 8990;
  const int draws = 1500;
  // From flat (every id within reach of every filter) to peaked.
  for (const float spread : {0.01f, 1.0f, 4.0f, 40.0f}) {
    std::vector<float> logits = RandomFloats(vocab, rng);
    for (float& v : logits) v *= spread;
    for (SamplingParams s : {SamplingParams{}, {.top_p = 0.9f}, {.top_k = 50}, {.min_p = 0.02f},
                             {.top_p = 0.3f, .top_k = 700, .min_p = 0.001f}}) {
      s.temperature = 0.8f;
      s.seed = rng();
      const Filtered expected = FilterInDouble(logits, limit, s);
      if (!(expected.margin > 1e-6)) continue;
      CAPTURE(spread, s.top_k, s.top_p, s.min_p);
      const auto counts = Count(logits, limit, s, draws, false, SupportedCpuIsas().back());
      CheckCounts(counts, expected.p, draws);
    }
  }
}

TEST_CASE("filters keep the lower ids of equal logits") {
  const std::vector<float> logits(100, 1.5f);
  for (const CpuIsa isa : SupportedCpuIsas()) {
    CAPTURE(CpuIsaName(isa));
    for (const SamplingParams& s :
         {SamplingParams{.temperature = 1, .top_k = 3}, {.temperature = 1, .top_p = 0.0201f}}) {
      const std::vector<int> counts = Count(logits, 100, s, 200, false, isa);
      CHECK(counts[0] + counts[1] + counts[2] == 200);
      for (size_t i = 0; i < 3; ++i) CHECK(counts[i] > 20);
    }
  }
}

TEST_CASE("a draw depends on logits, seed and position alone") {
  std::mt19937_64 rng(testing::RandomSeed());
  const int rows = 37;
  const int64_t vocab = 3000, limit = 2990;
  const std::vector<float> logits = RandomFloats(rows * vocab, rng);
  std::vector<SamplingParams> sampling;
  std::vector<int32_t> positions;
  for (int r = 0; r < rows; ++r) {
    SamplingParams s{.temperature = r % 5 == 0 ? 0.0f : 0.9f, .seed = rng(), .logprobs = r % 4 - 1};
    if (r % 2 == 1) s.top_p = 0.9f;
    if (r % 3 == 1) s.top_k = 40;
    if (r % 7 == 1) s.min_p = 0.05f;
    sampling.push_back(s);
    positions.push_back(static_cast<int32_t>(rng() % 5000));
  }
  for (const CpuIsa isa : SupportedCpuIsas()) {
    CAPTURE(CpuIsaName(isa));
    const auto all = RunSample(logits, vocab, limit, sampling, positions, 1, isa);
    CHECK(RunSample(logits, vocab, limit, sampling, positions, 2, isa) == all);
    CHECK(RunSample(logits, vocab, limit, sampling, positions, 3, isa) == all);
    for (size_t r = 0; r < sampling.size(); ++r) {
      const auto row = testing::Rows(logits, vocab, static_cast<int64_t>(r), 1);
      CHECK(RunSample(row, vocab, limit, {sampling[r]}, {positions[r]}, 1, isa)[0] == all[r]);
    }
  }
}

TEST_CASE("log-probabilities are of the raw logits, the most likely first, equals by id") {
  std::mt19937_64 rng(testing::RandomSeed());
  const int64_t vocab = 700, limit = 690;
  std::vector<float> logits = RandomFloats(vocab, rng);
  for (size_t i = 0; i < logits.size(); ++i) {
    logits[i] = std::round(logits[i] * 4) + 30;  // many equals, far from zero
    if (i >= static_cast<size_t>(limit)) logits[i] = 1000;
  }
  const double log_sum_exp = testing::LogSumExp(logits.data(), limit);
  std::vector<int32_t> order(static_cast<size_t>(limit));
  std::iota(order.begin(), order.end(), 0);
  const auto logit = [&](int32_t i) { return logits[static_cast<size_t>(i)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logit(a) > logit(b); });
  for (const CpuIsa isa : SupportedCpuIsas()) {
    for (const float temperature : {0.0f, 0.5f, 2.0f}) {
      for (const int32_t n : {-1, 0, 1, 3, kMaxTopLogprobs}) {
        CAPTURE(CpuIsaName(isa), temperature, n);
        const SamplingParams s{.temperature = temperature, .top_k = 100, .logprobs = n};
        const SampleResult r = RunSample(logits, vocab, limit, {s}, {1}, 1, isa)[0];
        CHECK(!r.non_finite);
        REQUIRE(r.top.size() == static_cast<size_t>(std::max(n, 0)));
        if (n < 0) continue;
        CHECK(r.logprob == Approx(logit(r.token) - log_sum_exp).margin(1e-5));
        for (size_t i = 0; i < r.top.size(); ++i) {
          REQUIRE(r.top[i].token == order[i]);
          CHECK(r.top[i].logprob == Approx(logit(order[i]) - log_sum_exp).margin(1e-5));
        }
      }
    }
  }
}

TEST_CASE("NaN and infinite logits are reported, for their row alone; -Inf is a logit") {
  std::mt19937_64 rng(testing::RandomSeed());
  const int64_t vocab = 333, limit = 330;
  const std::vector<float> good = RandomFloats(vocab, rng);
  for (const CpuIsa isa : SupportedCpuIsas()) {
    for (const float temperature : {0.0f, 1.0f}) {
      std::vector<float> logits;
      std::vector<bool> bad;
      const auto add = [&](size_t index, float value, bool is_bad) {
        logits.insert(logits.end(), good.begin(), good.end());
        logits[logits.size() - good.size() + index] = value;
        bad.push_back(is_bad);
      };
      for (const size_t i : {0, 17, 63, 64, 329}) {
        add(i, NAN, true);
        add(i, -NAN, true);
        add(i, kInfinity, true);
        add(i, -kInfinity, false);
      }
      add(330, NAN, false);  // beyond the limit
      logits.insert(logits.end(), static_cast<size_t>(vocab), -kInfinity);
      bad.push_back(true);
      const SamplingParams s{.temperature = temperature, .logprobs = 2};
      const auto results = RunSample(logits, vocab, limit, {bad.size(), s},
                                     std::vector<int32_t>(bad.size(), 4), 2, isa);
      for (size_t r = 0; r < bad.size(); ++r) {
        CAPTURE(CpuIsaName(isa), temperature, r);
        CHECK(results[r].non_finite == bad[r]);
        CHECK((results[r].token >= 0 && results[r].token < limit));
        CHECK(results[r].top.empty() == bad[r]);
      }
    }
  }
}

TEST_CASE("token log-probabilities equal float64; NaN passes through") {
  std::mt19937_64 rng(testing::RandomSeed());
  const int rows = 41;
  for (const int64_t vocab : {1, 50, 1003, 9000}) {
    const int64_t limit = vocab - vocab / 11;
    std::vector<float> logits = RandomFloats(rows * vocab, rng);
    std::vector<int32_t> targets;
    for (int r = 0; r < rows; ++r) {
      targets.push_back(static_cast<int32_t>(rng() % static_cast<uint64_t>(limit)));
      for (int64_t i = 0; i < vocab; ++i) {
        float& v = logits[static_cast<size_t>(r * vocab + i)];
        v = i < limit ? v * 5 + static_cast<float>(r - 20) * 4 : 1e4f;
      }
    }
    logits[static_cast<size_t>(7 * vocab)] = NAN;
    for (const CpuIsa isa : SupportedCpuIsas()) {
      std::vector<float> first;
      for (const int threads : {1, 2, 3}) {
        CAPTURE(CpuIsaName(isa), vocab, threads);
        ThreadPool pool(threads);
        CpuContext context(&pool, isa);
        std::vector<float> out(rows);
        TokenLogprobs({.logits = logits.data(), .targets = targets.data(), .rows = rows,
                       .vocab = vocab, .vocab_limit = limit, .out = out.data()}, context);
        CHECK(std::isnan(out[7]));
        out[7] = 0;
        for (int r = 0; r < rows; ++r) {
          const float* row = logits.data() + r * vocab;
          const auto i = static_cast<size_t>(r);
          if (r != 7) {
            CHECK(out[i] == Approx(row[targets[i]] - testing::LogSumExp(row, limit)).margin(2e-5));
          }
        }
        if (first.empty()) first = out;
        CHECK(testing::SameBits(out, first));
      }
    }
  }
}

}  // namespace
}  // namespace hadal
