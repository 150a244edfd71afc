#include "kernels/cuda/moe_tile.cuh"

namespace hadal::cuda {
namespace {

// Scales of the two halves of an item's weight rows (gate and up, or 64 outputs and the next 64), one
// per step, fetched a step ahead.
template <typename Shape>
struct TileScales {
  const float* w[2];
  float next[2];
  int step = 0, steps;

  __device__ __forceinline__ TileScales(const TilePart& p, const TileItem& item, int count)
      : steps(count) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int second = Shape::kIsGated ? p.n : Shape::kWeightRows / 2;
      const int output = item.first + h * second;
      w[h] = p.w.scales(item.tile.expert, output < p.w.n ? output : item.first);
    }
    Fetch();
  }
  __device__ __forceinline__ void Fetch() {
    next[0] = __ldg(w[0] + step);
    next[1] = __ldg(w[1] + step);
    step = min(step + 1, steps - 1);
  }
};

// Of a thread's rows g and g + 8, and of the two halves.
struct StepScales {
  float x[2], w[2];
};

// d += the sums of one step times their scales.
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
  TileScales<Shape> scales(p, item, steps);
  const int row = group * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
  for (int i = 0; i < Shape::kWeightRows / 2; ++i) d[i] = 0;
  for (int step = 0; step < steps; ++step) {
    AwaitBarrier(memory.full(slot.index), slot.parity);
    const uint32_t x_scales = memory.scales(slot.index) + row * 4;
    const StepScales now = {{LoadSharedFloat(x_scales), LoadSharedFloat(x_scales + 32)},
                            {scales.next[0], scales.next[1]}};
    const uint64_t x = TileDescriptor(memory.x(slot.index) + group * 64 * 128);
    const uint64_t w = TileDescriptor(memory.weights(slot.index));
    TileSums<Shape> part;
    BeginProducts();
#pragma unroll
    for (int k = 0; k < 4; ++k) WgmmaFp8N128(part, x + k * 2, w + k * 2, k > 0);
    CommitProducts();
    scales.Fetch();
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
