#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cpu/ops.h"

namespace hadal::testing {

// log of the sum of exp over the first n logits of a row.
inline double LogSumExp(const float* logits, int64_t n) {
  const double top = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(logits[i] - top);
  return top + std::log(sum);
}

// The distribution that sampling draws from, in float64: an entry per id.
struct Filtered {
  std::vector<double> p;
  double margin = 1;  // how near a filter came to deciding otherwise, relative
};

inline Filtered FilterInDouble(const std::vector<float>& logits, int64_t limit,
                               const SamplingParams& s) {
  std::vector<int64_t> order(static_cast<size_t>(limit));
  std::iota(order.begin(), order.end(), 0);
  const auto logit = [&](int64_t i) { return static_cast<double>(logits[static_cast<size_t>(i)]); };
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return logit(a) > logit(b); });
  if (s.top_k > 0 && s.top_k < limit) order.resize(static_cast<size_t>(s.top_k));
  std::vector<double> w;
  for (const int64_t i : order) w.push_back(std::exp((logit(i) - logit(order[0])) / s.temperature));
  Filtered f;
  if (s.top_p < 1) {
    const double total = std::accumulate(w.begin(), w.end(), 0.0);
    double mass = 0;
    size_t kept = 0;
    while (kept < w.size() && (kept == 0 || mass < s.top_p * total)) {
      mass += w[kept++];
      f.margin = std::min(f.margin, std::abs(mass / total - s.top_p));
    }
    w.resize(kept);
  }
  size_t kept = 0;
  for (; kept < w.size() && (kept == 0 || w[kept] >= s.min_p); ++kept) {
  }
  for (const double v : w) {
    if (s.min_p > 0) f.margin = std::min(f.margin, std::abs(v / s.min_p - 1));
  }
  w.resize(kept);
  const double total = std::accumulate(w.begin(), w.end(), 0.0);
  f.p.assign(logits.size(), 0.0);
  for (size_t i = 0; i < w.size(); ++i) f.p[static_cast<size_t>(order[i])] = w[i] / total;
  return f;
}

// Samples every row of logits [rows][vocab].
inline std::vector<SampleResult> RunSample(const std::vector<float>& logits, int64_t vocab,
                                           int64_t limit,
                                           const std::vector<SamplingParams>& sampling,
                                           const std::vector<int32_t>& positions, int threads,
                                           CpuIsa isa) {
  ThreadPool pool(threads);
  CpuContext context(&pool, isa);
  std::vector<SampledToken> drawn(sampling.size());
  std::vector<TokenLogprob> top(sampling.size() * kMaxTopLogprobs);
  Sample({.logits = logits.data(), .rows = static_cast<int>(sampling.size()), .vocab = vocab,
          .vocab_limit = limit, .sampling = sampling.data(), .positions = positions.data(),
          .out = drawn.data(), .top = top.data()}, context);
  std::vector<SampleResult> results(sampling.size());
  for (size_t i = 0; i < results.size(); ++i) {
    results[i] = {.token = drawn[i].token, .logprob = drawn[i].logprob,
                  .non_finite = drawn[i].non_finite != 0};
    if (results[i].non_finite) continue;
    const auto first = top.begin() + static_cast<int64_t>(i) * kMaxTopLogprobs;
    results[i].top.assign(first, first + std::max(sampling[i].logprobs, 0));
  }
  return results;
}

}  // namespace hadal::testing
