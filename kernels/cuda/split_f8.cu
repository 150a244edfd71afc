#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/split_f8.cuh"
#include "kernels/cuda/split_f8.h"

namespace hadal::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 16;  // of a row's block of columns

struct SplitArgs {
  const __nv_bfloat16* x;
  uint8_t* codes;
  float* scales;
  const int32_t* count;
  int rows, columns, lead, blocks;
};

__global__ void __launch_bounds__(kThreads) SplitRowsKernel(SplitArgs a) {
  const int64_t item = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  const int64_t row = item / a.blocks, block = item % a.blocks;
  const int lane = threadIdx.x % kLanes;
  const int column = static_cast<int>(block) * 128 + lane * 8 - a.lead;
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
  const bool there = row < (a.count == nullptr ? a.rows : min(a.rows, *a.count));
  uint4 x = {0, 0, 0, 0};
  if (there && column >= 0 && column < a.columns) {
    x = *reinterpret_cast<const uint4*>(a.x + row * a.columns + column);
  }
  float scale;
  const SplitEight v = SplitRow(x, &scale);
  if (!there) return;
  uint8_t* to = a.codes + (row * 2 * a.blocks + block) * 128 + lane * 8;
  *reinterpret_cast<uint2*>(to) = v.high;
  *reinterpret_cast<uint2*>(to + int64_t{a.blocks} * 128) = v.low;
  if (lane == 0) a.scales[row * a.blocks + block] = scale;
}

}  // namespace

SplitView SplitRows(const __nv_bfloat16* x, int rows, const int32_t* count, int columns, int lead,
                    CudaContext& context) {
  const int blocks = (columns + lead + 127) / 128;
  auto* codes = context.scratch.Allocate<uint8_t>(int64_t{rows} * 2 * blocks * 128);
  auto* scales = context.scratch.Allocate<float>(int64_t{rows} * blocks);
  const int64_t threads = int64_t{rows} * blocks * kLanes;
  if (threads > 0) {
    Launch(SplitRowsKernel, dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)),
           dim3(kThreads), 0, context,
           SplitArgs{x, codes, scales, count, rows, columns, lead, blocks});
  }
  return {codes, scales, blocks};
}

int64_t SplitRowsBytes(int64_t rows, int64_t columns) {
  const int64_t blocks = (columns + 127) / 128 + 1;
  return DeviceScratch::Aligned(rows * 2 * blocks * 128) +
         DeviceScratch::Aligned(rows * blocks * int64_t{sizeof(float)});
}

}  // namespace hadal::cuda
