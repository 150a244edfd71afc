#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/op_params.h"

namespace hadal::testing {

struct RouteShape {
  const char* name;
  int tokens;
  int64_t dim;
  int experts, top_k, groups, limited_groups;
  RouterScore score;
  GroupScore group_score;
  bool normalise, bias;
  float route_scale;
  DType act;
};

// One token in float64.
struct TokenRouting {
  std::vector<int32_t> ids;
  std::vector<double> weights;
  double margin = std::numeric_limits<double>::infinity();  // that the choice hung on

  std::vector<int32_t> Best(const std::vector<double>& values, int count) {
    std::vector<int32_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
    });
    for (size_t i = 0; i + 1 < order.size() && i < static_cast<size_t>(count); ++i) {
      const double gap =
          values[static_cast<size_t>(order[i])] - values[static_cast<size_t>(order[i + 1])];
      margin = std::min(margin, gap);
    }
    order.resize(static_cast<size_t>(count));
    return order;
  }
};

inline TokenRouting RouteReference(const RouteShape& s, const float* x, const std::vector<float>& gate,
                            const std::vector<float>& bias) {
  std::vector<double> score(static_cast<size_t>(s.experts));
  for (size_t e = 0; e < score.size(); ++e) {
    for (int64_t k = 0; k < s.dim; ++k) {
      score[e] +=
          static_cast<double>(x[k]) * gate[e * static_cast<size_t>(s.dim) + static_cast<size_t>(k)];
    }
  }
  double sum = 0;
  const double top = *std::max_element(score.begin(), score.end());
  for (double& v : score) {
    v = s.score == RouterScore::kSigmoid ? 1 / (1 + std::exp(-v)) : std::exp(v - top);
    sum += v;
  }
  if (s.score == RouterScore::kSoftmax) {
    for (double& v : score) v /= sum;
  }
  std::vector<double> choice = score;
  if (s.bias) {
    for (size_t e = 0; e < choice.size(); ++e) choice[e] += bias[e];
  }
  TokenRouting routing;
  const auto size = static_cast<size_t>(s.experts / s.groups);
  if (s.limited_groups < s.groups) {
    std::vector<double> group;
    for (size_t g = 0; g < static_cast<size_t>(s.groups); ++g) {
      std::vector<double> members(choice.begin() + static_cast<int64_t>(g * size),
                                  choice.begin() + static_cast<int64_t>((g + 1) * size));
      std::sort(members.rbegin(), members.rend());
      group.push_back(s.group_score == GroupScore::kMax || size < 2 ? members[0]
                                                                    : members[0] + members[1]);
    }
    std::vector<bool> kept(group.size());
    for (int32_t g : routing.Best(group, s.limited_groups)) kept[static_cast<size_t>(g)] = true;
    for (size_t e = 0; e < choice.size(); ++e) {
      if (!kept[e / size]) choice[e] = -std::numeric_limits<double>::infinity();
    }
  }
  routing.ids = routing.Best(choice, s.top_k);
  double total = 0;
  for (int32_t e : routing.ids) total += score[static_cast<size_t>(e)];
  for (int32_t e : routing.ids) {
    routing.weights.push_back(score[static_cast<size_t>(e)] * s.route_scale /
                              (s.normalise ? total : 1.0));
  }
  return routing;
}

struct Routed {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

// All but pointers.
inline RouteParams ParamsOf(const RouteShape& s) {
  return {.tokens = s.tokens,
          .dim = s.dim,
          .experts = s.experts,
          .top_k = s.top_k,
          .groups = s.groups,
          .limited_groups = s.limited_groups,
          .score = s.score,
          .group_score = s.group_score,
          .normalise = s.normalise,
          .route_scale = s.route_scale};
}

inline constexpr auto kSoftmax = RouterScore::kSoftmax;
inline constexpr auto kSigmoid = RouterScore::kSigmoid;
inline constexpr auto kMax = GroupScore::kMax;
inline constexpr auto kTwo = GroupScore::kTopTwoSum;

}  // namespace hadal::testing
