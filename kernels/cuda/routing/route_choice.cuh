#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/device/warp.cuh"

namespace hadal::cuda {

// The choice of one token's experts by one warp. Lane l holds the kPer experts from l * kPer on in
// registers: of equal values the lowest lane's, and there the first, has the lowest index.

// Larger value, larger key. No value has key 0.
__device__ __forceinline__ uint32_t OrderedKey(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 ties with 0
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float ValueOfKey(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// A lane's values of `from`, 0 where there is no such expert. Of kVec, experts is a multiple.
// kFresh: written by the kernel before this one, and so not to be found in the first-level cache.
template <bool kFresh, int kVec, int kPer>
__device__ __forceinline__ void LoadLane(const float* from, int experts, float (&v)[kPer]) {
  const int first = threadIdx.x % 32 * kPer;
#pragma unroll
  for (int r = 0; r < kPer; r += kVec) {
    const bool inside = first + r < experts;
    const float* at = from + first + r;
    if constexpr (kVec == 4) {
      float4 four = {};
      if (inside)
        four = kFresh ? __ldcg(reinterpret_cast<const float4*>(at))
                      : *reinterpret_cast<const float4*>(at);
      v[r] = four.x, v[r + 1] = four.y, v[r + 2] = four.z, v[r + 3] = four.w;
    } else if constexpr (kVec == 2) {
      float2 two = {};
      if (inside)
        two = kFresh ? __ldcg(reinterpret_cast<const float2*>(at))
                     : *reinterpret_cast<const float2*>(at);
      v[r] = two.x, v[r + 1] = two.y;
    } else {
      v[r] = !inside ? 0 : kFresh ? __ldcg(at) : *at;
    }
  }
}
template <int kVec, int kPer>
__device__ __forceinline__ void StoreLane(float* to, int experts, const float (&v)[kPer]) {
  const int first = threadIdx.x % 32 * kPer;
#pragma unroll
  for (int r = 0; r < kPer; r += kVec) {
    if (first + r >= experts) continue;
    if constexpr (kVec == 4) {
      *reinterpret_cast<float4*>(to + first + r) = make_float4(v[r], v[r + 1], v[r + 2], v[r + 3]);
    } else if constexpr (kVec == 2) {
      *reinterpret_cast<float2*>(to + first + r) = make_float2(v[r], v[r + 1]);
    } else {
      to[first + r] = v[r];
    }
  }
}

// Logits become scores in place.
template <int kPer>
__device__ __forceinline__ void ScoreExperts(const RouteParams& p, float (&v)[kPer]) {
  if (p.score == RouterScore::kSigmoid) {
#pragma unroll
    for (int r = 0; r < kPer; ++r) v[r] = 1.0f / (1.0f + expf(-v[r]));
    return;
  }
  const int count = p.experts - static_cast<int>(threadIdx.x % 32) * kPer;
  uint32_t key = 0;
#pragma unroll
  for (int r = 0; r < kPer; ++r) key = max(key, r < count ? OrderedKey(v[r]) : 0);
  const float top = ValueOfKey(__reduce_max_sync(kWholeWarp, key));
  float sum = 0;
#pragma unroll
  for (int r = 0; r < kPer; ++r) {
    v[r] = r < count ? expf(v[r] - top) : 0;
    sum += v[r];
  }
  const float share = 1.0f / WarpSum(sum);
#pragma unroll
  for (int r = 0; r < kPer; ++r) v[r] *= share;
}

// Best and second best of a group, by 1 << log_lanes neighbouring lanes; the group's score in all
// of them. Each group's lanes start elsewhere, so that groups of 32 do not meet in one bank.
__device__ __forceinline__ float ScoreGroup(const float* choice, int size, int log_lanes,
                                            GroupScore rule) {
  const int lane = threadIdx.x % 32, lanes = 1 << log_lanes, part = lane & (lanes - 1);
  float first = -INFINITY, second = -INFINITY;
  const int steps = (size + lanes - 1) >> log_lanes;
  int step = (lane >> log_lanes) % steps;
#pragma unroll 8
  for (int i = 0; i < steps; ++i) {
    const int at = (step << log_lanes) + part;
    const float value = at < size ? choice[at] : -INFINITY;
    second = fmaxf(second, fminf(first, value));
    first = fmaxf(first, value);
    step = step + 1 == steps ? 0 : step + 1;
  }
  for (int d = 1; d < lanes; d *= 2) {
    const float other = __shfl_xor_sync(kWholeWarp, first, d);
    const float other_second = __shfl_xor_sync(kWholeWarp, second, d);
    second = fmaxf(fmaxf(second, other_second), fminf(first, other));
    first = fmaxf(first, other);
  }
  return rule == GroupScore::kMax || size < 2 ? first : first + second;
}

// Sets `choice` to -inf outside the best limited_groups groups. values: the same in shared memory,
// lost; keys: p.groups words there.
template <int kPer>
__device__ __forceinline__ void ExcludeGroups(const RouteParams& p, float (&choice)[kPer],
                                              float* values, uint32_t* keys) {
  const int lane = threadIdx.x % 32, size = p.experts / p.groups;
  const int log_lanes = p.groups > 32 ? 0 : 31 - __clz(32 / p.groups);
  const int at_once = 32 >> log_lanes;
  for (int base = 0; base < p.groups; base += at_once) {
    const int group = base + (lane >> log_lanes);
    const float score =
        ScoreGroup(values + min(group, p.groups - 1) * size, size, log_lanes, p.group_score);
    if (group < p.groups) keys[group] = OrderedKey(score);
  }
  __syncwarp();
  auto* stays = reinterpret_cast<uint32_t*>(values);
  for (int g = lane; g < p.groups; g += 32) {
    const uint32_t own = keys[g];
    int better = 0;
#pragma unroll 8
    for (int h = 0; h < p.groups; ++h) better += keys[h] > own || (keys[h] == own && h < g);
    stays[g] = better < p.limited_groups;
  }
  __syncwarp();
  int group = lane * kPer / size, left = size - (lane * kPer - group * size);
#pragma unroll
  for (int r = 0; r < kPer; ++r) {
    if (group < p.groups && stays[group] == 0) choice[r] = -INFINITY;
    if (--left == 0) left = size, ++group;
  }
  __syncwarp();
}

// Writes the indices of the top_k best, best first.
template <int kPer>
__device__ __forceinline__ void TakeBest(const RouteParams& p, const float (&choice)[kPer],
                                         int* chosen) {
  const int lane = threadIdx.x % 32;
  uint32_t key[kPer];  // falling, equal ones by their index; 0: none is left
  int expert[kPer];
#pragma unroll
  for (int r = 0; r < kPer; ++r) {
    expert[r] = lane * kPer + r;
    key[r] = expert[r] < p.experts ? OrderedKey(choice[r]) : 0;
  }
#pragma unroll
  for (int round = 0; round < (kPer > 2 ? kPer : 1); ++round) {
#pragma unroll
    for (int r = round % 2; r + 1 < kPer; r += 2) {
      const bool swap = key[r + 1] > key[r];
      const uint32_t high = swap ? key[r + 1] : key[r], low = swap ? key[r] : key[r + 1];
      const int before = swap ? expert[r + 1] : expert[r], after = swap ? expert[r] : expert[r + 1];
      key[r] = high, key[r + 1] = low, expert[r] = before, expert[r + 1] = after;
    }
  }
#pragma unroll 1
  for (int j = 0; j < p.top_k; ++j) {
    const uint32_t best = __reduce_max_sync(kWholeWarp, key[0]);
    const bool won = __ffs(static_cast<int>(__ballot_sync(kWholeWarp, key[0] == best))) == lane + 1;
    if (won) chosen[j] = expert[0];
#pragma unroll
    for (int r = 0; r + 1 < kPer; ++r) {
      key[r] = won ? key[r + 1] : key[r];
      expert[r] = won ? expert[r + 1] : expert[r];
    }
    key[kPer - 1] = won ? 0 : key[kPer - 1];
  }
}

// Of token t, from its logits and the experts' bias.
// scratch: kRouteScratch * experts floats of shared memory.
inline constexpr int kRouteScratch = 3;
template <int kVec, int kPer>
__device__ __forceinline__ void RouteToken(const RouteParams& p, int64_t t, float (&v)[kPer],
                                           const float (&bias)[kPer], float* scratch) {
  float* scores = scratch;
  float* second = scratch + p.experts;
  auto* third = reinterpret_cast<uint32_t*>(second + p.experts);
  auto* chosen = reinterpret_cast<int*>(second);
  ScoreExperts(p, v);
  StoreLane<kVec>(scores, p.experts, v);
#pragma unroll
  for (int r = 0; r < kPer; ++r) v[r] += bias[r];
  if (p.limited_groups < p.groups) {
    StoreLane<kVec>(second, p.experts, v);
    __syncwarp();
    ExcludeGroups(p, v, second, third);
  }
  TakeBest(p, v, chosen);
  __syncwarp();
  const int lane = threadIdx.x % 32;
  float factor = p.route_scale;
  if (p.normalise) {
    float sum = 0;
#pragma unroll 1
    for (int j = lane; j < p.top_k; j += 32) sum += scores[chosen[j]];
    factor /= WarpSum(sum) + 1e-20f;
  }
#pragma unroll 1
  for (int j = lane; j < p.top_k; j += 32) {
    p.ids[t * p.top_k + j] = chosen[j];
    p.weights[t * p.top_k + j] = scores[chosen[j]] * factor;
  }
  __syncwarp();
}

// Of a token that is nobody's.
__device__ __forceinline__ void RefuseToken(const RouteParams& p, int64_t t) {
#pragma unroll 1
  for (int j = threadIdx.x % 32; j < p.top_k; j += 32) {
    p.ids[t * p.top_k + j] = -1;
    p.weights[t * p.top_k + j] = 0;
  }
}

// The routing of token t by one warp; ready(v) waits for its logits. What else it reads was there
// before the step.
template <int kVec, int kPer, typename Ready>
__device__ __forceinline__ void Choose(const RouteParams& p, int64_t t, float* scratch,
                                       Ready ready) {
  float bias[kPer] = {}, v[kPer] = {};
  if (p.bias != nullptr) LoadLane<false, kVec>(p.bias, p.experts, bias);
  const bool somebodys = p.positions == nullptr || p.positions[t] >= 0;
  ready(v);
  if (!somebodys) return RefuseToken(p, t);
  RouteToken<kVec>(p, t, v, bias, scratch);
}

}  // namespace hadal::cuda
