#pragma once

#include "kernels/cuda/sampling/row_group.cuh"

namespace hadal::cuda {

// Sorts list[0, count) by the threads of one CTA. REQUIRES: room up to the next power of two.
//
// A bitonic network. Comparisons at most 32 apart stay within the 64 elements of one warp, so only
// those further apart need the whole CTA to wait.
__device__ inline void SortList(uint64_t* list, int count) {
  int padded = 1;
  while (padded < count) padded *= 2;
  for (int i = count + threadIdx.x; i < padded; i += kRowThreads) list[i] = ~uint64_t{0};
  __syncthreads();
  for (int run = 2; run <= padded; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      for (int t = threadIdx.x; t < padded / 2; t += kRowThreads) {
        const int i = 2 * t - (t & (step - 1));
        const uint64_t a = list[i], b = list[i + step];
        if ((a > b) == ((i & run) == 0)) {
          list[i] = b;
          list[i + step] = a;
        }
      }
      const int next = step > 1 ? step / 2 : run;
      if (max(step, next) > 32) {
        __syncthreads();
      } else {
        __syncwarp();
      }
    }
  }
  __syncthreads();
}

}  // namespace hadal::cuda
