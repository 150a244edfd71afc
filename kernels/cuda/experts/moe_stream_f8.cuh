#pragma once

#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/hopper.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/experts/moe_stream_f8_copy.cuh"
#include "kernels/cuda/experts/split_f8.cuh"
#include "kernels/cuda/products/few_wgmma.cuh"

namespace hadal::cuda {

// How the warpgroups of the FP8 stream multiply, and its kernel.

// Of a thread: rows g and g + 8 of its warp's 16, tokens 8 j + 2 q and the next.
template <typename Shape>
using StreamF8Sums = float[Shape::kTiles][4];

// sums += products of a slot times the scales of the two rows and of the tokens.
template <typename Shape>
__device__ __forceinline__ void MultiplySlot(const StreamF8Memory<Shape>& memory, int slot,
                                             int group, float low, float high,
                                             StreamF8Sums<Shape>& sums) {
  const uint64_t a = TileDescriptor(memory.weights(slot) + group * kStreamF8Box);
  const uint64_t b = TileDescriptor(memory.x(slot));
  float d[2 * Shape::kTiles][4];
  BeginProducts();
#pragma unroll
  for (int k = 0; k < 4; ++k) FewProductF8(d, a + 2 * k, b + 2 * k, k > 0);
  CommitProducts();
  AwaitProducts<0>();
  KeepAll(d);
  const uint32_t scales = memory.scales(slot) + threadIdx.x % 4 * 8;
#pragma unroll
  for (int j = 0; j < Shape::kTiles; ++j) {
    const float x0 = LoadSharedFloat(scales + j * 32), x1 = LoadSharedFloat(scales + j * 32 + 4);
    const float scale[4] = {low * x0, low * x1, high * x0, high * x1};
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      sums[j][c] += scale[c] * (d[j][c] + kLowPart * d[j + Shape::kTiles][c]);
    }
  }
}

template <typename Shape>
__device__ __forceinline__ void StoreStream(const StreamPart& p, const StreamItem& item, int output,
                                            const StreamF8Sums<Shape>& sums) {
#pragma unroll
  for (int j = 0; j < Shape::kTiles; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int r = j * 8 + threadIdx.x % 4 * 2 + c;
      if (r >= item.tile.count) continue;
      const int64_t at = int64_t{item.tile.first + r} * p.out_stride + output;
      const float low = sums[j][c], high = sums[j][2 + c];
      if constexpr (Shape::kIsGated) {
        if (output < p.n) static_cast<bf16*>(p.out)[at] = FromFloat<bf16>(SiluMul(low, high));
      } else {
        if (output < p.n) static_cast<float*>(p.out)[at] = low;
        if (output + 8 < p.n) static_cast<float*>(p.out)[at + 8] = high;
      }
    }
  }
}

template <typename Shape>
__device__ __forceinline__ void ConsumeStream(const StreamItems<Shape, StreamF8Args>& items,
                                              const StreamF8Memory<Shape>& memory) {
  const int group = threadIdx.x / 128 - 1, warp = threadIdx.x % 128 / 32, g = threadIdx.x % 32 / 4;
  const int local = Shape::kIsGated ? group * 32 + warp * 8 + g : group * 64 + warp * 16 + g;
  StreamF8Slot<Shape> slot;
  StreamItem next = items.At(blockIdx.x);
  for (int i = blockIdx.x; i < items.count; i += gridDim.x) {
    const StreamItem item = next;
    next = items.At(i + gridDim.x);
    const StreamF8Part& p = items.part(item);
    const int output = item.first + local, steps = items.Steps(item);
    const int64_t row = min(output, p.n - 1);
    const int64_t other = Shape::kIsGated ? row + p.n : min(output + 8, p.n - 1);
    const float* low = p.w.scales(item.tile.expert, row);
    const float* high = p.w.scales(item.tile.expert, other);
    float next_low = __ldg(low), next_high = __ldg(high);
    StreamF8Sums<Shape> sums = {};
    for (int step = 0; step < steps; ++step) {
      const float now_low = next_low, now_high = next_high;
      const int ahead = min(step + 1, steps - 1);
      next_low = __ldg(low + ahead);
      next_high = __ldg(high + ahead);
      AwaitBarrier(memory.full(slot.index), slot.parity);
      FenceAsync();  // tokens came by ordinary writes
      MultiplySlot<Shape>(memory, slot.index, group, now_low, now_high, sums);
      ArriveForWarp(memory.empty(slot.index));
      slot.Next();
    }
    StoreStream<Shape>(p, item, output, sums);
  }
}

template <typename Shape>
__global__ void __launch_bounds__(kStreamF8Threads, 1)
    StreamF8Kernel(const __grid_constant__ StreamF8Args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ char shared[];
  const StreamF8Memory<Shape> memory(shared);
  if (threadIdx.x == 0) {
    memory.InitBarriers();
    PrefetchMap(&a.experts_map);
  }
  StreamItems<Shape, StreamF8Args> items(a, Shape::kTokens);
  const int started = threadIdx.x == 0 ? StartStream<Shape>(a, items, memory) : 0;
  __syncthreads();
  WaitForPrevious();
  AllowNext();
  items.CountExperts();
  if (threadIdx.x < kStreamF8Producers) {
    ProduceStream<Shape>(a, items, memory, started);
  } else {
    ConsumeStream<Shape>(items, memory);
  }
#endif
}

}  // namespace hadal::cuda
