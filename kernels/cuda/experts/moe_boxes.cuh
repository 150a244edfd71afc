#pragma once

#include <cuda.h>

#include "kernels/cuda/device/read_once.cuh"
#include "kernels/cuda/device/tensor_map.h"
#include "kernels/cuda/weights/weight_view.cuh"

namespace hadal::cuda {

// Boxes of 64 rows (or fewer) and 128 columns of FP8 weights, in the 128-byte swizzle: 4 times 8
// gate rows and their 8 up rows, or rows as they come.

// [matrices, groups, 2, 8, k]. REQUIRES: half of w.n a multiple of 8.
inline CUtensorMap PairMap(const WeightView& w, int count) {
  return TensorMapOf({.base = w.data,
                      .rank = 5,
                      .element_bytes = 1,
                      .dims = {w.k, 8, 2, w.n / 16, count},
                      .strides = {w.stride, w.n / 2 * w.stride, 8 * w.stride, w.n * w.stride},
                      .box = {128, 8, 2, 4, 1}});
}

// [matrices, rows, k], boxes of `rows` rows.
inline CUtensorMap RowMap(const WeightView& w, int count, int rows) {
  return TensorMapOf({.base = w.data,
                      .rank = 3,
                      .element_bytes = 1,
                      .dims = {w.k, w.n, count},
                      .strides = {w.stride, w.n * w.stride},
                      .box = {128, rows, 1}});
}

// Boxes read once, counted by the barrier.
__device__ __forceinline__ void CopyRowPairs(uint32_t to, const CUtensorMap* map, int column,
                                             int group, int expert, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %3, %4, %5}], [%6], %7;" ::"r"(to),
      "l"(map), "r"(column), "r"(0), "r"(group), "r"(expert), "r"(barrier), "l"(ReadOnce())
      : "memory");
}
__device__ __forceinline__ void CopyRows(uint32_t to, const CUtensorMap* map, int column, int row,
                                         int expert, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(expert), "r"(barrier), "l"(ReadOnce())
      : "memory");
}

}  // namespace hadal::cuda
