#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "common/philox.h"
#include "kernels/cuda/sampling/ops.h"
#include "tests/kernels/cpu/random_weight.h"
#include "tests/kernels/cuda/device_fixture.h"

namespace hadal::testing {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Sampling of one row in float64, by sorting.
class SampleReference {
 public:
  SampleReference(const float* logits, int64_t limit, const SamplingParams& s)
      : logits_(logits), limit_(limit), sampling_(s), order_(static_cast<size_t>(limit)) {
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    const double top = logits[order_[0]];
    double sum = 0;
    for (int64_t i = 0; i < limit; ++i) sum += std::exp(logits[i] - top);
    log_sum_exp_ = top + std::log(sum);
    if (s.temperature != 0) Filter(top);
  }

  double Logprob(int32_t id) const { return logits_[id] - log_sum_exp_; }
  int32_t Ranked(int i) const { return order_[static_cast<size_t>(i)]; }

  // What is wrong with drawing `token` at `uniform`, empty if nothing. Sums of FP32 weights may
  // move the token's interval by `kRounding`, and a filter may decide otherwise about its last
  // token.
  std::string Wrong(int32_t token, double uniform) const {
    if (token < 0 || token >= limit_) return "no such token";
    if (sampling_.temperature == 0) return token == order_[0] ? "" : "not the first of the largest";
    const auto at = std::find(drawn_from_.begin(), drawn_from_.end(), token);
    if (at == drawn_from_.end()) return "filtered out";
    const auto i = static_cast<size_t>(at - drawn_from_.begin());
    const double before = i == 0 ? 0 : cumulative_[i - 1];
    if (uniform >= before - slack_ && uniform < cumulative_[i] + slack_) return "";
    char text[200];
    std::snprintf(text, sizeof(text), "u = %.9f, but its interval is [%.9f, %.9f) of %zu tokens",
                  uniform, before, cumulative_[i], kept_);
    return text;
  }

 private:
  static constexpr double kRounding = 4e-6;

  void Filter(double top) {
    const SamplingParams& s = sampling_;
    drawn_from_ = order_;
    if (s.top_k > 0 && s.top_k < limit_) drawn_from_.resize(static_cast<size_t>(s.top_k));
    std::vector<double> w;
    for (const int32_t id : drawn_from_) w.push_back(std::exp((logits_[id] - top) / s.temperature));
    kept_ = w.size();
    if (s.top_p < 1) {
      const double total = std::accumulate(w.begin(), w.end(), 0.0);
      double mass = 0;
      size_t n = 0;
      while (n < w.size() && mass < s.top_p * total) mass += w[n++];
      kept_ = std::max<size_t>(n, 1);
    }
    while (kept_ > 1 && w[kept_ - 1] < s.min_p) --kept_;
    const bool filtered = s.top_k > 0 || s.top_p < 1 || s.min_p > 0;
    double total = std::accumulate(w.begin(), w.begin() + static_cast<int64_t>(kept_), 0.0);
    slack_ = kRounding + (s.top_p < 1 || s.min_p > 0 ? 1.01 * w[kept_ - 1] / total : 0);
    // The next one may be in by a hair: only for filters that compare sums or weights.
    if (filtered && (s.top_p < 1 || s.min_p > 0)) kept_ = std::min(kept_ + 1, w.size());
    drawn_from_.resize(kept_);
    w.resize(kept_);
    if (!filtered) {
      std::vector<double> by_id(w.size());
      for (size_t i = 0; i < w.size(); ++i) by_id[static_cast<size_t>(drawn_from_[i])] = w[i];
      std::iota(drawn_from_.begin(), drawn_from_.end(), 0);
      w = by_id;
    }
    double sum = 0;
    for (const double v : w) cumulative_.push_back((sum += v) / total);
  }

  const float* logits_;
  int64_t limit_;
  SamplingParams sampling_;
  std::vector<int32_t> order_;
  double log_sum_exp_ = 0;
  std::vector<int32_t> drawn_from_;
  std::vector<double> cumulative_;
  double slack_ = 0;
  size_t kept_ = 0;
};

struct SampleOutput {
  std::vector<SampledToken> tokens;
  std::vector<TokenLogprob> top;  // [rows, kMaxTopLogprobs]
};

// Rows of logits on the device, and Sample() of them.
class SampleCase {
 public:
  SampleCase(const std::vector<float>& logits, int64_t vocab, int64_t limit, DeviceFixture& device)
      : vocab_(vocab), limit_(limit), device_(device),
        logits_(logits) {}

  // Row i reads the logits from row first + i on.
  SampleOutput Run(const std::vector<SamplingParams>& sampling,
                   const std::vector<int32_t>& positions, int first = 0) const {
    const auto rows = static_cast<int64_t>(sampling.size());
    const GuardedBuffer device_sampling(sampling), device_positions(positions);
    const GuardedBuffer out(rows * static_cast<int64_t>(sizeof(SampledToken)));
    const GuardedBuffer top(rows * kMaxTopLogprobs * static_cast<int64_t>(sizeof(TokenLogprob)));
    SampleParams p{.logits = logits_.as<float>() + first * vocab_,
                   .rows = static_cast<int>(rows), .vocab = vocab_, .vocab_limit = limit_,
                   .sampling = device_sampling.as<SamplingParams>(),
                   .positions = device_positions.as<int32_t>(),
                   .out = out.as<SampledToken>(),
                   .top = top.as<TokenLogprob>(), .all_greedy = true};
    for (const SamplingParams& s : sampling) {
      p.any_top |= s.logprobs > 0;
      p.all_greedy &= s.temperature == 0;
    }
    cuda::Sample(p, device_.context);
    SampleOutput output{out.Download<SampledToken>(), top.Download<TokenLogprob>()};
    HADAL_CHECK(out.GuardIntact() && top.GuardIntact());
    return output;
  }

  const GuardedBuffer& logits() const { return logits_; }

 private:
  int64_t vocab_;
  int64_t limit_;
  DeviceFixture& device_;
  GuardedBuffer logits_;
};

inline double UniformOf(const SamplingParams& s, int32_t position) {
  return UniformDraw(s.seed, static_cast<uint64_t>(position));
}

inline std::string Describe(const SamplingParams& s) {
  char text[160];
  std::snprintf(text, sizeof(text), "temperature %g top_k %d top_p %g min_p %g logprobs %d",
                s.temperature, s.top_k, s.top_p, s.min_p, s.logprobs);
  return text;
}

}  // namespace hadal::testing
