#pragma once

#include "kernels/cuda/sampling/row_bins.cuh"
#include "kernels/cuda/sampling/row_place.cuh"
#include "kernels/cuda/sampling/row_scan.cuh"
#include "kernels/cuda/sampling/row_sort.cuh"

namespace hadal::cuda {

// Places in order, as many as a CTA sorts.
inline constexpr int kListed = RowBins::kBins;

// REQUIRES: `listed` is 0 before the first search.
struct SearchSpace {
  ReduceSpace reduce;
  SlotSpace slots;
  RowBins depths;  // by depth, in steps of 1 / kBinsPerFold
  union {          // of one bin of depths
    RowBins parts;
    uint64_t list[kListed];
  };
  int listed;
  struct Found {
    uint64_t place;
    uint64_t left;  // of the target, within the token's measure
    bool crowded;   // too many places for a list
  } found;
};
using Found = SearchSpace::Found;

// The functions below are called by all threads of the row together; all get the same result.

// The measure of the row's tokens by depth.
template <int kCtas>
__device__ __noinline__ void MeasureDepths(const KeptTokens tokens, const Goal goal,
                                           SearchSpace& space) {
  RowBins& bins = space.depths;
  bins.Clear();
  ForShare<kCtas>(tokens.logits, tokens.n, [&](float x, int id) {
    const float at = tokens.Depth(x) * kBinsPerFold;
    // The last bin is crowded and needs no count: it is where a target ends that is not met before.
    if (!(at < RowBins::kLast) || !tokens.Has(x, id)) return;
    const uint64_t measure = goal.Measure(tokens, x);
    if (measure != 0) bins.Add(static_cast<int>(at), measure);
  });
  bins.Total<kCtas>();
}

// Calls f(logit, id) for the CTA's share of one bin of depths.
template <int kCtas, typename F>
__device__ void ForBin(const KeptTokens& tokens, int bin, F f) {
  const float from = static_cast<float>(bin);
  const float to = bin == RowBins::kLast ? INFINITY : from + 1;
  ForShare<kCtas>(tokens.logits, tokens.n, [&](float x, int id) {
    const float at = tokens.Depth(x) * kBinsPerFold;
    if (!(at >= from) || (at >= to && to < INFINITY) || !tokens.Has(x, id)) return;
    f(x, id);
  });
}

// By CTA 0: the places of all CTAs' lists in order, and the one that exceeds `target`.
template <int kCtas>
__device__ Found FindListed(const KeptTokens& tokens, const Goal& goal, uint64_t target,
                            SearchSpace& space) {
  using Group = RowGroup<kCtas>;
  constexpr int kWarpsPerPeer = kRowWarps / kCtas;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int listed = *Group::At(&space.listed, lane % kCtas);
  int end = listed;  // of the places of peer lane % kCtas
#pragma unroll
  for (int step = 1; step < kCtas; step *= 2) {
    const int other = __shfl_up_sync(~0u, end, step);
    if (lane % kCtas >= step) end += other;
  }
  const int count = __shfl_sync(~0u, end, kCtas - 1);
  if (count > kListed) return {.crowded = true};
  const int peer = warp % kCtas;
  const int from_peer = __shfl_sync(~0u, listed, peer);
  const int first = __shfl_sync(~0u, end, peer) - from_peer;
  const uint64_t* list = Group::At(space.list, peer);
  for (int i = warp / kCtas * 32 + lane; peer > 0 && i < from_peer; i += kWarpsPerPeer * 32) {
    space.list[first + i] = list[i];
  }
  __syncthreads();
  SortList(space.list, count);
  uint64_t measures[kSlotsPerThread];
#pragma unroll
  for (int i = 0; i < kSlotsPerThread; ++i) {
    const int at = static_cast<int>(threadIdx.x) * kSlotsPerThread + i;
    measures[i] = at < count ? goal.Measure(tokens, LogitOf(space.list[at])) : 0;
  }
  const Slot slot = FindSlot(measures, [target](uint64_t) { return target; }, space.slots);
  return {.place = space.list[min(slot.index, count - 1)], .left = slot.left};
}

// The same without room for a list: by histograms of ever narrower ranges of places.
template <int kCtas>
__device__ __noinline__ Found FindCrowded(const KeptTokens tokens, const Goal goal, const Slot bin,
                                          SearchSpace& space) {
  struct Range {
    uint64_t first;
    uint64_t last;
  };
  RowBins& bins = space.parts;
  uint64_t target = bin.left;
  Range range{0, ~uint64_t{0}};
  const auto for_range = [&](auto f) {
    ForBin<kCtas>(tokens, bin.index, [&](float x, int id) {
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
    if (range.first >= range.last) return {.place = range.first, .left = target};
    const int shift = max(64 - __clzll(range.last - range.first) - 11, 0);
    bins.Clear();
    for_range([&](float x, uint64_t place) {
      const uint64_t measure = goal.Measure(tokens, x);
      if (measure != 0) bins.Add(static_cast<int>((place - range.first) >> shift), measure);
    });
    bins.Total<kCtas>();
    const Slot found = bins.Find([target](uint64_t) { return target; }, space.slots);
    target = found.left;
    range.first += static_cast<uint64_t>(found.index) << shift;
    range.last = min(range.last, range.first + (uint64_t{1} << shift) - 1);
  }
}

// The token of a bin of depths that exceeds what is left of the target there.
template <int kCtas>
__device__ __noinline__ Found FindInBin(const KeptTokens tokens, const Goal goal, const Slot bin,
                                        SearchSpace& space) {
  using Group = RowGroup<kCtas>;
  ForBin<kCtas>(tokens, bin.index, [&](float x, int id) {
    const int at = atomicAdd(&space.listed, 1);
    if (at < kListed) space.list[at] = PlaceOf(x, id);
  });
  Group::Sync();
  if (Group::rank() == 0) {
    const Found found = FindListed<kCtas>(tokens, goal, bin.left, space);
    if (threadIdx.x == 0) space.found = found;
  }
  Group::Sync();
  const Found found = *Group::At(&space.found, 0);
  if (threadIdx.x == 0) space.listed = 0;
  __syncthreads();
  return found.crowded ? FindCrowded<kCtas>(tokens, goal, bin, space) : found;
}

// The token that `goal` describes.
template <int kCtas>
__device__ uint64_t FindPlace(const KeptTokens& tokens, const Goal& goal, SearchSpace& space) {
  MeasureDepths<kCtas>(tokens, goal, space);
  const Slot bin =
      space.depths.Find([&](uint64_t total) { return goal.Target(total); }, space.slots);
  return FindInBin<kCtas>(tokens, goal, bin, space).place;
}

// The token that passes `fraction` of the weights left when the last of those that first reach
// `top_p` is the last to be kept. Two searches of one histogram.
template <int kCtas>
__device__ uint64_t FindWithinTopP(KeptTokens tokens, float top_p, double fraction,
                                   SearchSpace& space) {
  const Goal enough{.fraction = top_p, .reach = true};
  MeasureDepths<kCtas>(tokens, enough, space);
  uint64_t target = 0;
  const Slot last_bin = space.depths.Find(
      [&](uint64_t total) { return target = enough.Target(total); }, space.slots);
  const Found last = FindInBin<kCtas>(tokens, enough, last_bin, space);
  tokens.CutAfter(last.place);
  const uint64_t kept = target - last.left + tokens.Weight(tokens.cut_logit, 0);
  const Goal draw{.fraction = fraction};
  const Slot bin =
      space.depths.Find([&](uint64_t) { return draw.Target(kept); }, space.slots);
  return FindInBin<kCtas>(tokens, draw, bin, space).place;
}

// The id at which the running sum of weights, in the order of ids, exceeds `fraction` of all.
// Nothing has been cut.
template <int kCtas>
__device__ int DrawInOrder(const KeptTokens& tokens, double fraction, SearchSpace& space) {
  constexpr int kTile = kRowThreads;
  constexpr int kDepth = 4;  // loads on their way at a time
  using Group = RowGroup<kCtas>;
  RowBins& bins = space.depths;
  bins.Clear();
  const int own = threadIdx.x;
  const auto weight = [&](int id, float x) { return id < tokens.n ? tokens.Weight(x, 0) : 0; };
  for (int first = Group::rank(); first * kTile < tokens.n; first += kDepth * kCtas) {
    float x[kDepth];
#pragma unroll
    for (int j = 0; j < kDepth; ++j) {
      x[j] = tokens.logits[min((first + j * kCtas) * kTile + own, tokens.n - 1)];
    }
#pragma unroll
    for (int j = 0; j < kDepth; ++j) {
      const int tile = first + j * kCtas;
      uint64_t sum = weight(tile * kTile + own, x[j]);
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
      if (own % 32 == 0 && sum != 0) bins.Add(tile, sum);
    }
  }
  bins.Total<kCtas>();
  const Goal goal{.fraction = fraction};
  const Slot tile = bins.Find([&](uint64_t total) { return goal.Target(total); }, space.slots);
  const int id = tile.index * kTile + own;
  const uint64_t weights[kSlotsPerThread] = {
      weight(id, tokens.logits[min(id, tokens.n - 1)])};
  const uint64_t left = tile.left;
  const Slot slot = FindSlot(weights, [left](uint64_t) { return left; }, space.slots);
  return tile.index * kTile + slot.index / kSlotsPerThread;
}

}  // namespace hadal::cuda
