#pragma once

#include <cuda_runtime.h>

namespace hadal::cuda {

inline constexpr unsigned kWholeWarp = 0xffffffffu;

// Over all lanes, in every lane.
__device__ __forceinline__ float WarpSum(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kWholeWarp, x, lanes);
  return x;
}
__device__ __forceinline__ float WarpMax(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, lanes));
  return x;
}

}  // namespace hadal::cuda
