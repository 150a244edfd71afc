#pragma once

#include <cstdint>

// Sampling without sorting a vocabulary. Tokens stand in the order of their logits, best first,
// equals by id. What a filter keeps is a prefix of that order, and a draw is the token at which a
// running sum passes a number; both are found by a histogram over the order and then among the
// tokens of one of its bins. Weights are exp((logit - max) / temperature) as integers of 44
// fractional bits, so that sums are exact: the same bits on every rank and for every number of
// CTAs.

namespace hadal::cuda {

inline constexpr int kIdBits = 18;
inline constexpr int64_t kMaxVocab = int64_t{1} << kIdBits;
inline constexpr float kWeightOne = 0x1p44f;  // kMaxVocab of them fit in 64 bits
// Bins of the first histogram per e-fold of weight: beyond RowBins::kLast weights round to 0.
inline constexpr float kBinsPerFold = 64.0f;

// Increases with x; -0 equals +0.
__device__ inline uint32_t OrderedBits(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// A token's place: ascends from best to worst.
__device__ inline uint64_t PlaceOf(float logit, int id) {
  return uint64_t{~OrderedBits(logit)} << kIdBits | static_cast<uint32_t>(id);
}
__device__ inline float LogitOf(uint64_t place) {
  const uint32_t bits = ~static_cast<uint32_t>(place >> kIdBits);
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}
__device__ inline int IdOf(uint64_t place) { return static_cast<int>(place & (kMaxVocab - 1)); }

// The tokens of a row that filters have left.
struct KeptTokens {
  const float* logits;
  int n;                        // ids below it
  float max;                    // of all logits
  float factor;                 // 1 / temperature
  float cut_logit = -INFINITY;  // of the last token in order
  int cut_id = INT32_MAX;

  // How far below the max, in e-folds of weight. Rounded the same everywhere: the compiler leaves
  // intrinsics as they are.
  __device__ float Depth(float x) const { return __fmul_rn(__fsub_rn(max, x), factor); }
  __device__ uint64_t Weight(float x, float min_weight) const {
    const float depth = Depth(x);
    if (depth > 32.0f) return 0;
    const float weight = __expf(-depth);
    return weight < min_weight ? 0 : __float2ull_rn(__fmul_rn(weight, kWeightOne));
  }
  __device__ bool Has(float x, int id) const {
    return x > cut_logit || (x == cut_logit && id <= cut_id);
  }
  __device__ void CutAfter(uint64_t place) {
    cut_id = IdOf(place);
    cut_logit = logits[cut_id];
  }
};

// What FindPlace() looks for: the token at which the running measure exceeds a target.
struct Goal {
  bool count = false;    // every token measures 1; otherwise its weight
  uint64_t target = 0;   // of a count
  double fraction = 0;   // of the sum of weights
  bool reach = false;    // stop at the fraction itself, not beyond
  float min_weight = 0;  // lighter tokens measure 0

  __device__ uint64_t Measure(const KeptTokens& tokens, float x) const {
    return count ? 1 : tokens.Weight(x, min_weight);
  }
  __device__ uint64_t Target(uint64_t total) const {
    if (count) return target;
    const double at = fraction * static_cast<double>(total);
    const uint64_t goal = reach ? max(__double2ull_ru(at), 1ull) - 1 : __double2ull_rd(at);
    return min(goal, total > 0 ? total - 1 : 0);
  }
};

}  // namespace hadal::cuda
