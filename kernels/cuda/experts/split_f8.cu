#include <algorithm>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/experts/split_f8.cuh"
#include "kernels/cuda/experts/split_f8.h"

namespace hadal::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 16;  // of a row's block of columns

struct SplitPart {
  SplitSource from;
  uint8_t* codes;
  float* scales;
  int blocks;
};
struct SplitArgs {
  SplitPart part[2];
};

// Grid: row blocks of 128 columns, sources.
__global__ void __launch_bounds__(kThreads) SplitRowsKernel(const __grid_constant__ SplitArgs a) {
  const SplitPart& p = a.part[blockIdx.y];
  const int64_t item = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  const int64_t row = item / p.blocks, block = item % p.blocks;
  const int lane = threadIdx.x % kLanes;
  const int column = static_cast<int>(block) * 128 + lane * 8 - p.from.lead;
  WaitForPrevious();
  AllowNext();
  const bool there =
      row < (p.from.count == nullptr ? p.from.rows : min(p.from.rows, *p.from.count));
  uint4 x = {0, 0, 0, 0};
  if (there && column >= 0 && column < p.from.columns) {
    x = *reinterpret_cast<const uint4*>(p.from.x + row * p.from.columns + column);
  }
  float scale;
  const SplitEight v = SplitRow(x, &scale);
  if (!there) return;
  uint8_t* to = p.codes + (row * 2 * p.blocks + block) * 128 + lane * 8;
  *reinterpret_cast<uint2*>(to) = v.high;
  *reinterpret_cast<uint2*>(to + int64_t{p.blocks} * 128) = v.low;
  if (lane == 0) p.scales[row * p.blocks + block] = scale;
}

}  // namespace

void SplitRows(std::span<const SplitSource> sources, std::span<SplitView> views,
               CudaContext& context) {
  SplitArgs a{};
  int64_t threads = 0;
  for (size_t i = 0; i < sources.size(); ++i) {
    const SplitSource& from = sources[i];
    const int blocks = (from.columns + from.lead + 127) / 128;
    a.part[i] = {from, context.scratch.Allocate<uint8_t>(int64_t{from.rows} * 2 * blocks * 128),
                 context.scratch.Allocate<float>(int64_t{from.rows} * blocks), blocks};
    views[i] = {a.part[i].codes, a.part[i].scales, blocks};
    threads = std::max(threads, int64_t{from.rows} * blocks * kLanes);
  }
  const auto grid = dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads),
                         static_cast<unsigned>(sources.size()));
  if (threads > 0) Launch(SplitRowsKernel, grid, dim3(kThreads), 0, context, a);
}

int64_t SplitRowsBytes(int64_t rows, int64_t columns) {
  const int64_t blocks = (columns + 127) / 128 + 1;
  return DeviceScratch::Aligned(rows * 2 * blocks * 128) +
         DeviceScratch::Aligned(rows * blocks * int64_t{sizeof(float)});
}

}  // namespace hadal::cuda
