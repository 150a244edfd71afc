#pragma once

#include "kernels/cuda/sampling/row_group.cuh"

namespace hadal::cuda {

// Calls f(logit, id) for the share of one CTA in row[0, n), ids ascending within a thread. Several
// loads are on their way at a time.
template <int kCtas, typename F>
__device__ void ForShare(const float* row, int n, F f) {
  constexpr int kStep = kCtas * kRowThreads;
  constexpr int kDepth = 4;
  const int first = RowGroup<kCtas>::rank() * kRowThreads + threadIdx.x;
  int begin = 0;
  if (reinterpret_cast<uintptr_t>(row) % 16 == 0) {
    const auto* quads = reinterpret_cast<const float4*>(row);
    const int count = n / 4;
    int i = first;
    for (; i + (kDepth - 1) * kStep < count; i += kDepth * kStep) {
      float4 v[kDepth];
#pragma unroll
      for (int j = 0; j < kDepth; ++j) v[j] = quads[i + j * kStep];
#pragma unroll
      for (int j = 0; j < kDepth; ++j) {
        const int id = (i + j * kStep) * 4;
        f(v[j].x, id), f(v[j].y, id + 1), f(v[j].z, id + 2), f(v[j].w, id + 3);
      }
    }
    for (; i < count; i += kStep) {
      const float4 v = quads[i];
      f(v.x, i * 4), f(v.y, i * 4 + 1), f(v.z, i * 4 + 2), f(v.w, i * 4 + 3);
    }
    begin = count * 4;
  }
  for (int i = begin + first; i < n; i += kStep) f(row[i], i);
}

// What one look at a row tells.
struct RowSummary {
  float max = -INFINITY;
  int32_t id = INT32_MAX;   // of the first max
  float sum = 0;            // of exp(logit - max), if asked for
  int32_t non_finite = 0;   // NaN or +Inf was seen

  __device__ float LogSumExp() const { return max + logf(sum); }
  // Nothing can be drawn.
  __device__ bool bad() const { return non_finite != 0 || max == -INFINITY; }
};

__device__ inline RowSummary Combine(RowSummary a, RowSummary b) {
  const float max = fmaxf(a.max, b.max);
  const auto scaled = [max](const RowSummary& s) {
    return s.max == -INFINITY ? 0.0f : s.sum * __expf(s.max - max);
  };
  const bool a_first = a.max > b.max || (a.max == b.max && a.id < b.id);
  return {max, a_first ? a.id : b.id, scaled(a) + scaled(b), a.non_finite | b.non_finite};
}

// Of the whole row, in every thread.
template <int kCtas>
__device__ RowSummary Summarise(const float* row, int n, bool with_sum,
                                ReduceSpace& space) {
  RowSummary s;
  const auto look = [&](float x, int id) {
    if (x > s.max) {
      s.max = x;
      s.id = id;
    }
    s.non_finite |= !(x < INFINITY);
  };
  if (with_sum) {
    ForShare<kCtas>(row, n, [&](float x, int id) {
      if (x > s.max) {
        s.sum = s.sum * __expf(s.max - x) + 1.0f;
      } else if (x > -INFINITY) {
        s.sum += __expf(x - s.max);
      }
      look(x, id);
    });
  } else {
    ForShare<kCtas>(row, n, look);
  }
  return GroupReduce<kCtas>(s, Combine, space);
}

}  // namespace hadal::cuda
