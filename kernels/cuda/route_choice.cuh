#pragma once

#include <cstdint>

#include "kernels/backend.h"

namespace hadal::cuda {

// The choice of one token's experts by one warp.

inline constexpr unsigned kWholeWarp = 0xffffffffu;

// Larger value, larger key; of equal values the lower index. No value has key 0.
__device__ __forceinline__ uint64_t ChoiceKey(float value, int index) {
  const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 ties with 0
  const uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return (uint64_t{ordered} << 32) | (0xffffffffu - static_cast<uint32_t>(index));
}
__device__ __forceinline__ int IndexOfKey(uint64_t key) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key));
}

__device__ __forceinline__ uint64_t WarpMax(uint64_t key) {
  const auto high = static_cast<uint32_t>(key >> 32);
  const uint32_t top = __reduce_max_sync(kWholeWarp, high);
  const uint32_t low = high == top ? static_cast<uint32_t>(key) : 0;
  return (uint64_t{top} << 32) | __reduce_max_sync(kWholeWarp, low);
}
__device__ __forceinline__ float WarpMax(float x) {
  for (int d = 16; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, d));
  return x;
}
__device__ __forceinline__ float WarpSum(float x) {
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(kWholeWarp, x, d);
  return x;
}

// Logits become scores in place, by the warp.
__device__ inline void ScoreExperts(const RouteParams& p, float* scores) {
  const int lane = threadIdx.x % 32;
  if (p.score == RouterScore::kSigmoid) {
    for (int e = lane; e < p.experts; e += 32) scores[e] = 1.0f / (1.0f + expf(-scores[e]));
    return;
  }
  float top = -INFINITY, sum = 0;
  for (int e = lane; e < p.experts; e += 32) top = fmaxf(top, scores[e]);
  top = WarpMax(top);
  for (int e = lane; e < p.experts; e += 32) {
    scores[e] = expf(scores[e] - top);
    sum += scores[e];
  }
  sum = WarpSum(sum);
  for (int e = lane; e < p.experts; e += 32) scores[e] /= sum;
}

// Best and second best of a group, by `lanes` neighbouring lanes; the group's score in all of them.
// Each lane starts elsewhere, so that groups of 32 do not meet in one bank.
__device__ inline float ScoreGroup(const float* choice, int size, int lanes, GroupScore rule) {
  const int lane = threadIdx.x % 32, part = lane % lanes;
  float first = -INFINITY, second = -INFINITY;
  const int steps = (size + lanes - 1) / lanes;
  for (int i = 0; i < steps; ++i) {
    const int at = (i + lane / lanes) % steps * lanes + part;
    const float value = at < size ? choice[at] : -INFINITY;
    second = fmaxf(second, fminf(first, value));
    first = fmaxf(first, value);
  }
  for (int d = 1; d < lanes; d *= 2) {
    const float other = __shfl_xor_sync(kWholeWarp, first, d);
    const float other_second = __shfl_xor_sync(kWholeWarp, second, d);
    second = fmaxf(fmaxf(second, other_second), fminf(first, other));
    first = fmaxf(first, other);
  }
  return rule == GroupScore::kMax || size < 2 ? first : first + second;
}

// Sets choice to -inf outside the best limited_groups groups. `scratch` holds p.groups floats.
__device__ inline void ExcludeGroups(const RouteParams& p, float* choice, float* scratch) {
  const int lane = threadIdx.x % 32, size = p.experts / p.groups;
  int lanes = 1;
  while (lanes * 2 * p.groups <= 32) lanes *= 2;
  const int at_once = 32 / lanes;
  for (int base = 0; base < p.groups; base += at_once) {
    const int group = base + lane / lanes;
    const int inside = min(group, p.groups - 1);
    const float score = ScoreGroup(choice + inside * size, size, lanes, p.group_score);
    if (group < p.groups && lane % lanes == 0) scratch[group] = score;
  }
  __syncwarp();
  // The rank of a group says whether it stays.
  for (int e = lane; e < p.experts; e += 32) {
    const int group = e / size;
    const uint64_t own = ChoiceKey(scratch[group], group);
    int better = 0;
    for (int g = 0; g < p.groups; ++g) better += ChoiceKey(scratch[g], g) > own;
    if (better >= p.limited_groups) choice[e] = -INFINITY;
  }
  __syncwarp();
}

// The best of a lane's experts (lane, lane + 32, ..) that are not in `taken`; 0: there is none.
__device__ inline uint64_t BestOfLane(const float* choice, int experts, uint32_t taken) {
  uint64_t best = 0;
  for (int e = threadIdx.x % 32, bit = 0; e < experts; e += 32, ++bit) {
    const uint64_t key = ChoiceKey(choice[e], e);
    if ((taken >> bit & 1) == 0 && key > best) best = key;
  }
  return best;
}

// Writes the top_k best of `choice` and their weights: entry j by lane j % 32.
__device__ inline void TakeBest(const RouteParams& p, const float* scores, const float* choice,
                                int32_t* ids, float* weights) {
  const int lane = threadIdx.x % 32;
  uint32_t taken = 0;
  uint64_t own = BestOfLane(choice, p.experts, taken);
  float sum = 0;
  for (int j = 0; j < p.top_k; ++j) {
    const int best = IndexOfKey(WarpMax(own));
    if (best % 32 == lane) {
      taken |= 1u << (best / 32);
      own = BestOfLane(choice, p.experts, taken);
    }
    const float score = scores[best];
    sum += score;
    if (j % 32 == lane) {
      ids[j] = best;
      weights[j] = score * p.route_scale;
    }
  }
  if (!p.normalise) return;
  const float factor = p.route_scale / (sum + 1e-20f);
  for (int j = lane; j < p.top_k; j += 32) weights[j] = scores[ids[j]] * factor;
}

// By one warp; `somebodys` from IsSomebodys(), which reads what was there before the step. scratch: kRouteScratch * experts floats of shared memory, the logits first.
inline constexpr int kRouteScratch = 3;
__device__ __forceinline__ bool IsSomebodys(const RouteParams& p, int64_t t) {
  return p.positions == nullptr || p.positions[t] >= 0;
}
__device__ inline void RouteToken(const RouteParams& p, int64_t t, bool somebodys,
                                  float* scratch) {
  const int lane = threadIdx.x % 32;
  int32_t* ids = p.ids + t * p.top_k;
  float* weights = p.weights + t * p.top_k;
  if (!somebodys) {
    for (int j = lane; j < p.top_k; j += 32) {
      ids[j] = -1;
      weights[j] = 0;
    }
    return;
  }
  float* scores = scratch;
  float* choice = scores + p.experts;
  ScoreExperts(p, scores);
  for (int e = lane; e < p.experts; e += 32) {
    choice[e] = p.bias == nullptr ? scores[e] : scores[e] + p.bias[e];
  }
  __syncwarp();
  if (p.limited_groups < p.groups) ExcludeGroups(p, choice, choice + p.experts);
  TakeBest(p, scores, choice, ids, weights);
}

}  // namespace hadal::cuda
