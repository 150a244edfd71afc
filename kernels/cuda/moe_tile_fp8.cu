#include "kernels/cuda/moe_tile.cuh"

namespace hadal::cuda {
namespace {

// Scales of one item: of the thread's rows g and g + 8, and of the two halves of the weight rows
// (gate and up, or 64 outputs and the next 64). One per step.
template <typename Shape>
struct TileScales {
  const float* x[2];
  const float* w[2];

  __device__ __forceinline__ TileScales(const TilePart& p, const TileItem& item, int group) {
    const int warp = static_cast<int>(threadIdx.x) / 32 % 4, g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = group * 64 + warp * 16 + g + 8 * h;
      const int from = item.tile.first + (r < item.tile.count ? r : 0);
      const int row = p.source == nullptr ? from : __ldcg(p.source + from) / p.source_div;
      x[h] = p.x_scale + static_cast<int64_t>(row) * p.x_blocks;
      const int second = Shape::kIsGated ? p.n : Shape::kWeightRows / 2;
      const int output = item.first + h * second;
      w[h] = p.w.scales(item.tile.expert, output < p.w.n ? output : item.first);
    }
  }
};

struct StepScales {
  float x[2], w[2];
};
template <typename Shape>
__device__ __forceinline__ StepScales LoadScales(const TileScales<Shape>& from, int step) {
  return {{__ldcg(from.x[0] + step), __ldcg(from.x[1] + step)},
          {__ldg(from.w[0] + step), __ldg(from.w[1] + step)}};
}

// d += the sums of one step times their scales. The next step's scales are under way meanwhile.
template <typename Shape>
__device__ __forceinline__ void AddScaled(const StepScales& s, const TileSums<Shape>& part,
                                          TileSums<Shape>& d) {
  constexpr int kHalf = Shape::kWeightRows / 4;  // sums of a half
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float low = s.x[0] * s.w[half], high = s.x[1] * s.w[half];
#pragma unroll
    for (int i = half * kHalf; i < (half + 1) * kHalf; i += 4) {
      d[i] += low * part[i];
      d[i + 1] += low * part[i + 1];
      d[i + 2] += high * part[i + 2];
      d[i + 3] += high * part[i + 3];
    }
  }
}

template <typename Shape>
__device__ __forceinline__ void MultiplyItem(const TileMemory<Shape>& memory, const TilePart& p,
                                             const TileItem& item, int steps, int group,
                                             TileSlot<Shape::kSlots>& slot, TileSums<Shape>& d) {
  const TileScales<Shape> scales(p, item, group);
  StepScales next = LoadScales(scales, 0);
#pragma unroll
  for (int i = 0; i < Shape::kWeightRows / 2; ++i) d[i] = 0;
  for (int step = 0; step < steps; ++step) {
    const StepScales now = next;
    next = LoadScales(scales, min(step + 1, steps - 1));
    AwaitBarrier(memory.full(slot.index), slot.parity);
    const uint64_t x = TileDescriptor(memory.x(slot.index) + group * 64 * 128);
    const uint64_t w = TileDescriptor(memory.weights(slot.index));
    TileSums<Shape> part;
    BeginProducts();
#pragma unroll
    for (int k = 0; k < 4; ++k) WgmmaFp8N128(part, x + k * 2, w + k * 2, k > 0);
    CommitProducts();
    AwaitProducts<0>();
    if (threadIdx.x % 32 == 0) Arrive(memory.empty(slot.index));
    AddScaled<Shape>(now, part, d);
    slot.Next();
  }
}

template <bool kGated>
__global__ void __launch_bounds__(kTileThreads, 1)
    TileFp8Kernel(const __grid_constant__ TileArgs a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) char shared[];
  using Shape = TileShape<fp8, kGated>;
  RunTiles<Shape>(a, shared, [](auto&&... item) { MultiplyItem<Shape>(item...); });
#endif
}

}  // namespace

void LaunchTileFp8(TileArgs& args, bool gated, int max_tiles, CudaContext& context) {
  gated ? LaunchTiles<TileShape<fp8, true>>(TileFp8Kernel<true>, args, max_tiles, context)
        : LaunchTiles<TileShape<fp8, false>>(TileFp8Kernel<false>, args, max_tiles, context);
}

}  // namespace hadal::cuda
