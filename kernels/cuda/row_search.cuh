#pragma once

#include "kernels/cuda/row_bins.cuh"
#include "kernels/cuda/row_scan.cuh"

// Sampling without sorting a vocabulary. Tokens stand in the order of their logits, best first,
// equals by id. What a filter keeps is a prefix of that order, and a draw is the token at which a
// running sum passes a number; both are found by histograms of ever narrower ranges of the order.
// Weights are exp((logit - max) / temperature) as integers of 44 fractional bits, so that sums are
// exact: the same bits on every rank and for every number of CTAs.

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
__device__ inline int IdOf(uint64_t place) { return static_cast<int>(place & (kMaxVocab - 1)); }

// The tokens of a row that filters have left.
struct KeptTokens {
  const float* logits;
  int n;                          // ids below it
  float max;                      // of all logits
  float factor;                   // 1 / temperature
  float cut_logit = -INFINITY;    // of the last token in order
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
  bool count = false;     // every token measures 1; otherwise its weight
  uint64_t target = 0;    // of a count
  double fraction = 0;    // of the sum of weights
  bool reach = false;     // stop at the fraction itself, not beyond
  float min_weight = 0;   // lighter tokens measure 0

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

struct SearchSpace {
  ReduceSpace reduce;
  RowBins bins;
};

// The functions below are called by all threads of the row together; all get the same result.

// The token that `goal` describes.
template <int kCtas>
__device__ __noinline__ uint64_t FindPlace(const KeptTokens tokens, const Goal goal,
                                           SearchSpace& space) {
  struct Range {
    uint64_t first;
    uint64_t last;
  };
  RowBins& bins = space.bins;
  bins.Clear();
  ForShare<kCtas>(tokens.logits, tokens.n, [&](float x, int id) {
    const float at = tokens.Depth(x) * kBinsPerFold;
    // The last bin is crowded and needs no count: it is where a target ends that is not met before.
    if (!(at < RowBins::kLast) || !tokens.Has(x, id)) return;
    const uint64_t measure = goal.Measure(tokens, x);
    if (measure != 0) bins.Add(static_cast<int>(at), measure);
  });
  auto [bin, target] = FindBin<kCtas>(bins, [&](uint64_t total) { return goal.Target(total); });
  const float from = static_cast<float>(bin);
  const float to = bin == RowBins::kLast ? INFINITY : from + 1;

  Range range{0, ~uint64_t{0}};
  const auto for_range = [&](auto f) {
    ForShare<kCtas>(tokens.logits, tokens.n, [&](float x, int id) {
      const float at = tokens.Depth(x) * kBinsPerFold;
      if (!(at >= from) || (at >= to && to < INFINITY) || !tokens.Has(x, id)) return;
      const uint64_t place = PlaceOf(x, id);
      if (place >= range.first && place <= range.last) f(x, place);
    });
  };
  for (;;) {
    Range seen{~uint64_t{0}, 0};
    for_range([&](float, uint64_t place) {
      seen = {min(seen.first, place), max(seen.last, place)};
    });
    range = GroupReduce<kCtas>(
        seen, [](Range a, Range b) { return Range{min(a.first, b.first), max(a.last, b.last)}; },
        space.reduce);
    if (range.first >= range.last) return range.first;
    const int shift = max(64 - __clzll(range.last - range.first) - 11, 0);
    bins.Clear();
    for_range([&](float x, uint64_t place) {
      const uint64_t measure = goal.Measure(tokens, x);
      if (measure != 0) bins.Add(static_cast<int>((place - range.first) >> shift), measure);
    });
    const RowBins::Place found = FindBin<kCtas>(bins, [target](uint64_t) { return target; });
    target = found.target;
    range.first += static_cast<uint64_t>(found.bin) << shift;
    range.last = min(range.last, range.first + (uint64_t{1} << shift) - 1);
  }
}

// The id at which the running sum of weights, in the order of ids, exceeds `fraction` of all.
// Nothing has been cut.
template <int kCtas>
__device__ int DrawInOrder(const KeptTokens& tokens, double fraction, SearchSpace& space) {
  constexpr int kTile = kRowThreads;
  using Group = RowGroup<kCtas>;
  RowBins& bins = space.bins;
  bins.Clear();
  const int own = threadIdx.x;
  for (int tile = Group::rank(); tile * kTile < tokens.n; tile += kCtas) {
    const int id = tile * kTile + own;
    uint64_t sum = id < tokens.n ? tokens.Weight(tokens.logits[id], 0) : 0;
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
    if (own % 32 == 0) bins.Add(tile, sum);
  }
  const Goal goal{.fraction = fraction};
  const auto [tile, left] =
      FindBin<kCtas>(bins, [&](uint64_t total) { return goal.Target(total); });
  bins.Clear();
  const int id = tile * kTile + own;
  if (tile % kCtas == Group::rank() && id < tokens.n) {
    bins.Add(own, tokens.Weight(tokens.logits[id], 0));
  }
  return tile * kTile + FindBin<kCtas>(bins, [target = left](uint64_t) { return target; }).bin;
}

}  // namespace hadal::cuda
