#include <algorithm>

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/rows/quantise_row.cuh"

namespace hadal::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBothThreads = 1024;
constexpr int kBothItems = 4;  // of a thread, at once
constexpr int kBothPerBlock = kBothThreads / kQuantiseLanes * kBothItems;

__global__ void __launch_bounds__(kThreads) QuantiseKernel(QuantiseParams p, unsigned blocks) {
  const unsigned item = (blockIdx.x * kThreads + threadIdx.x) / kQuantiseLanes;
  WaitForPrevious();
  AllowNext();
  const unsigned rows = p.row_count == nullptr ? p.rows : min(p.rows, *p.row_count);
  if (!p.silu_mul) return QuantiseItems<1>(p, blocks, rows, item, 0);
  const int64_t r = item / blocks, b = item - r * blocks;
  const int64_t col = b * kQuantiseColumns + threadIdx.x % kQuantiseLanes * 8;
  const int64_t from = r >= rows ? -1 : p.row_of == nullptr ? r : p.row_of[r];
  float v[8] = {};
  if (from >= 0 && col < p.columns) {
    const auto* gate = p.x + from * p.x_stride + col;
    float up[8];
    WidenEight(*reinterpret_cast<const uint4*>(gate), v);
    WidenEight(*reinterpret_cast<const uint4*>(gate + p.columns), up);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = Silu(v[i]) * up[i];
  }
  StoreQuantised(p, v, r, b, r < rows);
}

struct BothArgs {
  QuantiseParams part[2];
  unsigned blocks[2];  // of columns
  unsigned grid[2];
};

// The kernel behind this one starts at once where there is room.
__global__ void __launch_bounds__(kBothThreads) QuantiseBothKernel(BothArgs a) {
  AllowNext();
  const bool second = blockIdx.x >= a.grid[0];
  const QuantiseParams& p = a.part[second];
  const unsigned blocks = a.blocks[second], rank = blockIdx.x - (second ? a.grid[0] : 0);
  const unsigned rows = p.row_count == nullptr ? p.rows : min(p.rows, __ldcg(p.row_count));
  WaitForPrevious();
  constexpr unsigned kStride = kBothThreads / kQuantiseLanes;
  for (unsigned i = rank * kBothPerBlock; i < rows * blocks; i += a.grid[second] * kBothPerBlock) {
    QuantiseItems<kBothItems>(p, blocks, rows, i + threadIdx.x / kQuantiseLanes, kStride);
  }
}

}  // namespace

void Quantise(const QuantiseParams& p, CudaContext& context) {
  if (p.rows == 0) return;
  const int64_t blocks = QuantiseBlocks(p), threads = p.rows * blocks * kQuantiseLanes;
  Launch(QuantiseKernel, dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)),
         dim3(kThreads), 0, context, p, static_cast<unsigned>(blocks));
  HADAL_CUDA_LAUNCHED();
}

void QuantiseBoth(const QuantiseParams& first, const QuantiseParams& second, CudaContext& context) {
  BothArgs a{{first, second}, {}, {}};
  for (int i = 0; i < 2; ++i) {
    const int64_t blocks = QuantiseBlocks(a.part[i]);
    const int64_t wanted = (a.part[i].rows * blocks + kBothPerBlock - 1) / kBothPerBlock;
    // A third of the multiprocessors where each block then takes at most four turns, else all.
    const int64_t room = context.sm_count * (i == 0 ? 3 : 1) / 12;
    a.blocks[i] = static_cast<unsigned>(blocks);
    a.grid[i] = static_cast<unsigned>(wanted > 4 * room ? wanted : std::min(wanted, room));
  }
  Launch(QuantiseBothKernel, dim3(std::max(1u, a.grid[0] + a.grid[1])), dim3(kBothThreads), 0,
         context, a);
  HADAL_CUDA_LAUNCHED();
}

}  // namespace hadal::cuda
