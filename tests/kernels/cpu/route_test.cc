#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
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

struct RouterShape {
  int64_t dim = 0;
  int experts = 0;
  int top_k = 0;
  int groups = 1;
  int limited_groups = 1;
  RouterScore score = RouterScore::kSoftmax;
  GroupScore group_score = GroupScore::kMax;
  bool normalise = false;
  float route_scale = 1;
};

struct Routing {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Routing RunRoute(const RouterShape& shape, const float* x, const float* gate, const float* bias,
                 int tokens, int threads, CpuIsa isa) {
  ThreadPool pool(threads);
  CpuContext context(&pool, isa);
  const auto size = static_cast<size_t>(tokens * shape.top_k);
  Routing r{std::vector<int32_t>(size, -7), std::vector<float>(size)};
  Route({.x = x, .gate = gate, .bias = bias, .tokens = tokens, .dim = shape.dim,
         .experts = shape.experts, .top_k = shape.top_k, .groups = shape.groups,
         .limited_groups = shape.limited_groups, .score = shape.score,
         .group_score = shape.group_score, .normalise = shape.normalise,
         .route_scale = shape.route_scale, .ids = r.ids.data(), .weights = r.weights.data()},
        context);
  return r;
}

// One token in float64. `margin` is the smallest distance that a choice hung on.
struct Reference {
  std::vector<int32_t> ids;
  std::vector<double> weights;
  double margin = std::numeric_limits<double>::infinity();

  // The `count` best of values, ties to the lower index.
  std::vector<int32_t> Best(const std::vector<double>& values, int count) {
    std::vector<int32_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    const auto at = [&](int32_t i) { return values[static_cast<size_t>(i)]; };
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return at(a) > at(b); });
    for (int i = 0; i < count && i + 1 < static_cast<int>(order.size()); ++i) {
      const double gap = at(order[static_cast<size_t>(i)]) - at(order[static_cast<size_t>(i + 1)]);
      margin = std::min(margin, gap);
    }
    order.resize(static_cast<size_t>(count));
    return order;
  }
};

Reference RouteInDouble(const RouterShape& shape, const float* x, const std::vector<float>& gate,
                        const float* bias) {
  std::vector<double> score;
  for (int64_t e = 0; e < shape.experts; ++e) {
    double logit = 0;
    for (int64_t i = 0; i < shape.dim; ++i) {
      logit += static_cast<double>(x[i]) * gate[static_cast<size_t>(e * shape.dim + i)];
    }
    score.push_back(shape.score == RouterScore::kSigmoid ? 1 / (1 + std::exp(-logit))
                                                         : std::exp(logit));
  }
  if (shape.score == RouterScore::kSoftmax) {
    const double sum = std::accumulate(score.begin(), score.end(), 0.0);
    for (double& s : score) s /= sum;
  }
  std::vector<double> choice = score;
  for (size_t e = 0; bias != nullptr && e < choice.size(); ++e) choice[e] += bias[e];
  Reference r;
  if (shape.groups > 1) {
    const int size = shape.experts / shape.groups;
    std::vector<double> groups, masked(choice.size(), -std::numeric_limits<double>::infinity());
    for (int g = 0; g < shape.groups; ++g) {
      std::vector<double> in(choice.begin() + g * size, choice.begin() + (g + 1) * size);
      std::sort(in.rbegin(), in.rend());
      groups.push_back(shape.group_score == GroupScore::kMax || size < 2 ? in[0] : in[0] + in[1]);
    }
    for (const int32_t g : r.Best(groups, shape.limited_groups)) {
      std::copy_n(choice.begin() + g * size, size, masked.begin() + g * size);
    }
    choice = masked;
  }
  r.ids = r.Best(choice, shape.top_k);
  double sum = 0;
  for (const int32_t id : r.ids) sum += score[static_cast<size_t>(id)];
  for (const int32_t id : r.ids) {
    r.weights.push_back(score[static_cast<size_t>(id)] / (shape.normalise ? sum : 1) *
                        shape.route_scale);
  }
  return r;
}

void CheckRoute(const RouterShape& shape, bool with_bias, std::mt19937_64& rng) {
  const int tokens = 50;
  const std::vector<float> x = RandomFloats(tokens * shape.dim, rng);
  std::vector<float> gate = RandomFloats(shape.experts * shape.dim, rng);
  for (float& g : gate) g *= 1.5f / std::sqrt(static_cast<float>(shape.dim));
  // Below zero, so that a group masked with 0 instead of -inf would win.
  std::vector<float> biases;
  std::uniform_real_distribution<float> below(-3, -1);
  for (int e = 0; with_bias && e < shape.experts; ++e) biases.push_back(below(rng));
  const float* bias = with_bias ? biases.data() : nullptr;
  for (const CpuIsa isa : SupportedCpuIsas()) {
    CAPTURE(CpuIsaName(isa), shape.experts, shape.top_k, shape.groups, with_bias);
    const Routing all = RunRoute(shape, x.data(), gate.data(), bias, tokens, 1, isa);
    int close = 0;
    for (int t = 0; t < tokens; ++t) {
      const float* row = x.data() + t * shape.dim;
      const Reference expected = RouteInDouble(shape, row, gate, bias);
      const auto first = all.ids.begin() + t * shape.top_k;
      const std::vector<int32_t> ids(first, first + shape.top_k);
      if (expected.margin < 1e-6) {
        ++close;
        continue;
      }
      CHECK(ids == expected.ids);
      CHECK(testing::RelativeError(testing::Rows(all.weights, shape.top_k, t, 1),
                                   expected.weights) < 1e-5);
      const Routing alone = RunRoute(shape, row, gate.data(), bias, 1, 1 + t % 3, isa);
      CHECK(alone.ids == ids);
      CHECK(testing::SameBits(alone.weights, testing::Rows(all.weights, shape.top_k, t, 1)));
    }
    CHECK(close < tokens / 2);
    for (const int threads : {2, 3}) {
      const Routing again = RunRoute(shape, x.data(), gate.data(), bias, tokens, threads, isa);
      CHECK(again.ids == all.ids);
      CHECK(testing::SameBits(again.weights, all.weights));
    }
  }
}

TEST_CASE("routing equals float64 in every mode") {
  std::mt19937_64 rng(testing::RandomSeed());
  for (const auto score : {RouterScore::kSoftmax, RouterScore::kSigmoid}) {
    for (const bool bias : {false, true}) {
      for (const bool normalise : {false, true}) {
        const float scale = normalise ? 2.5f : 1.0f;
        CheckRoute({.dim = 67, .experts = 10, .top_k = 3, .score = score, .normalise = normalise,
                    .route_scale = scale}, bias, rng);
        for (const auto rule : {GroupScore::kMax, GroupScore::kTopTwoSum}) {
          CheckRoute({.dim = 130, .experts = 32, .top_k = 4, .groups = 8, .limited_groups = 3,
                      .score = score, .group_score = rule, .normalise = normalise,
                      .route_scale = scale}, bias, rng);
          CheckRoute({.dim = 5, .experts = 6, .top_k = 2, .groups = 6, .limited_groups = 2,
                      .score = score, .group_score = rule, .normalise = normalise}, bias, rng);
        }
      }
    }
  }
  CheckRoute({.dim = 515, .experts = 256, .top_k = 8, .groups = 8, .limited_groups = 4,
              .score = RouterScore::kSigmoid, .group_score = GroupScore::kTopTwoSum,
              .normalise = true, .route_scale = 2.5f}, true, rng);
}

TEST_CASE("routing gives ties to the lower index, of experts as of groups") {
  std::mt19937_64 rng(testing::RandomSeed());
  const int experts = 12;
  const int64_t dim = 33;
  const std::vector<float> x = RandomFloats(dim, rng), row = RandomFloats(dim, rng);
  std::vector<float> gate;
  for (int e = 0; e < experts; ++e) gate.insert(gate.end(), row.begin(), row.end());
  std::vector<float> bias(experts, 0.0f);
  for (const CpuIsa isa : SupportedCpuIsas()) {
    CAPTURE(CpuIsaName(isa));
    RouterShape shape{.dim = dim, .experts = experts, .top_k = 4};
    CHECK(RunRoute(shape, x.data(), gate.data(), nullptr, 1, 1, isa).ids ==
          std::vector<int32_t>{0, 1, 2, 3});
    shape.groups = 4;
    shape.limited_groups = 2;
    shape.group_score = GroupScore::kTopTwoSum;
    bias[7] = bias[10] = 0.5f;  // groups 2 and 3
    CHECK(RunRoute(shape, x.data(), gate.data(), bias.data(), 1, 1, isa).ids ==
          std::vector<int32_t>{7, 10, 6, 8});
    bias[7] = 0;  // groups 3 and 0
    CHECK(RunRoute(shape, x.data(), gate.data(), bias.data(), 1, 1, isa).ids ==
          std::vector<int32_t>{10, 0, 1, 2});
    bias[10] = 0;
  }
}

TEST_CASE("a token with NaN inputs gets ids that exist and leaves its neighbours alone") {
  std::mt19937_64 rng(testing::RandomSeed());
  const RouterShape shape{.dim = 20, .experts = 16, .top_k = 5, .groups = 4, .limited_groups = 2};
  std::vector<float> x = RandomFloats(3 * shape.dim, rng);
  const std::vector<float> gate = RandomFloats(shape.experts * shape.dim, rng);
  for (const CpuIsa isa : SupportedCpuIsas()) {
    const Routing good = RunRoute(shape, x.data(), gate.data(), nullptr, 3, 1, isa);
    std::vector<float> poisoned = x;
    poisoned[static_cast<size_t>(shape.dim + 3)] = NAN;
    const Routing bad = RunRoute(shape, poisoned.data(), gate.data(), nullptr, 3, 1, isa);
    for (size_t i = 0; i < bad.ids.size(); ++i) {
      CHECK((bad.ids[i] >= 0 && bad.ids[i] < shape.experts));
      if (i / 5 != 1) {
        CHECK(bad.ids[i] == good.ids[i]);
        CHECK(bad.weights[i] == good.weights[i]);
      }
    }
  }
}

}  // namespace
}  // namespace hadal
