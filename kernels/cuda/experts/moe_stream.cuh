#pragma once

#include <algorithm>

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/experts/moe_mma.cuh"
#include "kernels/cuda/experts/moe_stream_copy.cuh"

namespace hadal::cuda {

template <typename Shape>
using StreamSums = MmaSums[kStreamM][Shape::kTokenTiles];

// sums += the slot's weights times its first `tiles` tiles of 8 tokens.
template <typename W, typename Shape>
__device__ __forceinline__ void MultiplyStream(uint32_t slot, int tiles, StreamSums<Shape>& sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    WeightOperand<W> w[kStreamM];
#pragma unroll
    for (int m = 0; m < kStreamM; ++m) {
      const uint32_t at = slot + ((warp * 2 + part) * kStreamM + m) * 1024 + lane * 16;
      w[m] = WeightsOf<W>(LoadShared16(at), LoadShared16(at + 512));
    }
#pragma unroll
    for (int t = 0; t < Shape::kTokenTiles; ++t) {
      if (t >= tiles) break;
      uint4 x[kXVectors<W>];
#pragma unroll
      for (int v = 0; v < kXVectors<W>; ++v) {
        const int chunk = (part * 4 + lane % 4) * kXVectors<W> + v;
        x[v] = LoadShared16(slot + Shape::kWeightBytes + XOffset<W>(t * 8 + lane / 4, chunk));
      }
      const TokenOperand<W> tokens = TokensOf<W>(x);
#pragma unroll
      for (int m = 0; m < kStreamM; ++m) Multiply(sums[m][t], w[m], tokens);
    }
  }
}

// The same for FP8: a step is one block of scales.
template <typename Shape>
__device__ __forceinline__ void MultiplyScaled(uint32_t slot, int tiles, StreamSums<Shape>& sums) {
  StreamSums<Shape> step = {};
  MultiplyStream<fp8, Shape>(slot, tiles, step);
  const uint32_t scales = slot + Shape::kWeightBytes + Shape::kXBytes + threadIdx.x / 32 * 128 +
                          threadIdx.x % 32 / 4 * 4;
#pragma unroll
  for (int m = 0; m < kStreamM; ++m) {
    const float s0 = LoadSharedFloat(scales + m * 64), s1 = LoadSharedFloat(scales + m * 64 + 32);
#pragma unroll
    for (int t = 0; t < Shape::kTokenTiles; ++t) {
      sums[m][t].at[0] += s0 * step[m][t].at[0];
      sums[m][t].at[1] += s0 * step[m][t].at[1];
      sums[m][t].at[2] += s1 * step[m][t].at[2];
      sums[m][t].at[3] += s1 * step[m][t].at[3];
    }
  }
}

template <bool kGated, typename Shape>
__device__ __forceinline__ void StoreStream(const StreamPart& p, const StreamItem& item,
                                            const StreamSums<Shape>& sums) {
  const int q = threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < kStreamM; ++m) {
    const int output = OutputOf<kGated>(item.first, m);
#pragma unroll
    for (int t = 0; t < Shape::kTokenTiles; ++t) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int r = t * 8 + q * 2 + c;
        if (r >= item.tile.count) continue;
        const int64_t at = static_cast<int64_t>(item.tile.first + r) * p.out_stride + output;
        const float low = sums[m][t].at[c], high = sums[m][t].at[2 + c];
        if constexpr (kGated) {
          // Up to the stride: the next product reads zeros behind the last pair.
          if (output < p.out_stride)
            static_cast<bf16*>(p.out)[at] = FromFloat<bf16>(SiluMul(low, high));
        } else {
          if (output < p.n) static_cast<float*>(p.out)[at] = low;
          if (output + 8 < p.n) static_cast<float*>(p.out)[at + 8] = high;
        }
      }
    }
  }
}

template <typename W, bool kGated, int kTokens, int kSlots>
__global__ void __launch_bounds__(kStreamThreads, 2) StreamKernel(StreamArgs a) {
  extern __shared__ __align__(128) char memory[];
  using Shape = StreamShape<W, kGated, kTokens, kSlots>;
  WaitForPrevious();
  AllowNext();
  StreamItems<Shape> items(a, kTokens);
  items.CountExperts();
  const uint32_t ring = SharedAddress(memory);
  StreamProducer<W, kGated, kTokens, kSlots> producer{ring, static_cast<int>(blockIdx.x)};
  for (int i = 0; i < kSlots - 1; ++i) producer.Issue(items);
  int slot = 0;
  for (int i = blockIdx.x; i < items.count; i += gridDim.x) {
    const StreamItem item = items.At(i);
    const int steps = items.Steps(item), tiles = (item.tile.count + 7) / 8;
    StreamSums<Shape> sums = {};
    for (int step = 0; step < steps; ++step) {
      AwaitCopies<kSlots - 2>();
      __syncthreads();  // everybody has done with the slot before: it is filled again
      producer.Issue(items);
      const uint32_t at = ring + slot * Shape::kSlotBytes;
      if constexpr (sizeof(W) == 1) {
        MultiplyScaled<Shape>(at, tiles, sums);
      } else {
        MultiplyStream<W, Shape>(at, tiles, sums);
      }
      slot = slot + 1 == kSlots ? 0 : slot + 1;
    }
    StoreStream<kGated, Shape>(items.part(item), item, sums);
  }
}

// Slots so that two blocks fit an SM: 64 KB of weights in flight at least.
template <typename W, bool kGated, int kTokens>
void LaunchStreamKernel(const StreamArgs& args, int max_items, CudaContext& context) {
  constexpr int kSlots = (sizeof(W) == 1 ? 4 : 5) - (kTokens > 32 ? 1 : 0);
  constexpr int kBytes = kSlots * StreamShape<W, kGated, kTokens, kSlots>::kSlotBytes;
  const auto kernel = StreamKernel<W, kGated, kTokens, kSlots>;
  static const bool once = [&] {
    HADAL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    return true;
  }();
  (void)once;
  const int blocks = std::clamp(max_items, 1, 2 * context.sm_count);
  Launch(kernel, blocks, kStreamThreads, kBytes, context, args);
}

template <typename W>
void LaunchStreamOf(const StreamArgs& args, bool gated, int tokens, int max_items,
                    CudaContext& context) {
  if (tokens == 32) {
    gated ? LaunchStreamKernel<W, true, 32>(args, max_items, context)
          : LaunchStreamKernel<W, false, 32>(args, max_items, context);
  } else {
    gated ? LaunchStreamKernel<W, true, 64>(args, max_items, context)
          : LaunchStreamKernel<W, false, 64>(args, max_items, context);
  }
}

}  // namespace hadal::cuda
