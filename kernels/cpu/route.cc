#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector.h"

namespace hadal {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr int64_t kTokenBlock = 24;
constexpr int64_t kExpertBlock = 32;

// Index of the largest of values[0 .. n) that is not taken, the first of equals.
int LargestFree(const float* values, const bool* taken, int n) {
  int best = -1;
  for (int i = 0; i < n; ++i) {
    if (!taken[i] && (best < 0 || values[i] > values[best])) best = i;
  }
  return best;
}

float ScoreOfGroup(const float* choice, int n, GroupScore rule) {
  float first = kLowest, second = kLowest;
  for (int i = 0; i < n; ++i) {
    if (choice[i] > first) {
      second = first;
      first = choice[i];
    } else if (choice[i] > second) {
      second = choice[i];
    }
  }
  return rule == GroupScore::kMax || n < 2 ? first : first + second;
}

// The routing of one token; buffers of `experts` elements.
struct Router {
  const RouteParams& p;
  const VectorKernels& kernels;
  float* choice;   // score + bias, -inf in excluded groups
  float* groups;   // score of each group
  bool* taken;

  // logits become scores.
  void Score(float* logits) const {
    if (p.score == RouterScore::kSoftmax) {
      float top = logits[0];
      for (int e = 1; e < p.experts; ++e) top = std::max(top, logits[e]);
      const auto sum = static_cast<float>(kernels.exp_sum(logits, p.experts, top, 1.0f, logits));
      for (int e = 0; e < p.experts; ++e) logits[e] /= sum;
    } else {
      for (int e = 0; e < p.experts; ++e) logits[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    }
  }

  void ExcludeGroups() const {
    const int size = p.experts / p.groups;
    for (int g = 0; g < p.groups; ++g)
      groups[g] = ScoreOfGroup(choice + g * size, size, p.group_score);
    std::fill_n(taken, p.groups, false);
    for (int i = 0; i < p.limited_groups; ++i) taken[LargestFree(groups, taken, p.groups)] = true;
    for (int g = 0; g < p.groups; ++g) {
      if (!taken[g]) std::fill_n(choice + g * size, size, kLowest);
    }
  }

  void Choose(const float* scores, int32_t* ids, float* weights) const {
    for (int e = 0; e < p.experts; ++e) {
      choice[e] = p.bias == nullptr ? scores[e] : scores[e] + p.bias[e];
    }
    if (p.limited_groups < p.groups) ExcludeGroups();
    std::fill_n(taken, p.experts, false);
    float sum = 0;
    for (int j = 0; j < p.top_k; ++j) {
      ids[j] = LargestFree(choice, taken, p.experts);
      taken[ids[j]] = true;
      weights[j] = scores[ids[j]];
      sum += weights[j];
    }
    const float factor = p.normalise ? p.route_scale / (sum + 1e-20f) : p.route_scale;
    for (int j = 0; j < p.top_k; ++j) weights[j] *= factor;
  }
};

}  // namespace

void Route(const RouteParams& p, CpuContext& context) {
  const VectorKernels& kernels = VectorKernelsFor(context.isa);
  const auto* x = static_cast<const float*>(p.x);
  ScratchArena::Scope scope(context.shared);
  float* scores = context.shared.Allocate<float>(int64_t{p.tokens} * p.experts);
  const int64_t token_blocks = (p.tokens + kTokenBlock - 1) / kTokenBlock;
  const int64_t expert_blocks = (p.experts + kExpertBlock - 1) / kExpertBlock;
  context.pool->ParallelFor(token_blocks * expert_blocks, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t t = unit % token_blocks * kTokenBlock, e = unit / token_blocks * kExpertBlock;
      kernels.dot(x + t * p.dim, p.dim, static_cast<int>(std::min(kTokenBlock, p.tokens - t)),
                  p.gate + e * p.dim, p.dim,
                  static_cast<int>(std::min(kExpertBlock, p.experts - e)), p.dim,
                  scores + t * p.experts + e, p.experts);
    }
  });
  const int64_t grain = RowGrain(int64_t{p.experts} * p.top_k * 4);
  context.pool->ParallelFor(p.tokens, grain, [&](int64_t begin, int64_t end, int thread) {
    ScratchArena& arena = context.scratch[static_cast<size_t>(thread)];
    ScratchArena::Scope inner(arena);
    const Router router{p, kernels, arena.Allocate<float>(p.experts),
                        arena.Allocate<float>(p.groups), arena.Allocate<bool>(p.experts)};
    for (int64_t t = begin; t < end; ++t) {
      if (p.positions != nullptr && p.positions[t] < 0) {
        std::fill_n(p.ids + t * p.top_k, p.top_k, -1);
        std::fill_n(p.weights + t * p.top_k, p.top_k, 0.0f);
        continue;
      }
      router.Score(scores + t * p.experts);
      router.Choose(scores + t * p.experts, p.ids + t * p.top_k, p.weights + t * p.top_k);
    }
  });
}

}  // namespace hadal
