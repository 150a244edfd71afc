#include "kernels/cuda/moe_tile.cuh"

namespace hadal::cuda {
namespace {

// Of a step: of a thread's rows g and g + 8, and of the two halves of the weight rows (gate and up,
// or 64 outputs and the next 64).
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
__device__ __forceinline__ void MultiplyItem(const TileMemory<Shape>& memory, int steps, int group,
                                             TileSlot<Shape::kSlots>& slot, TileSums<Shape>& d) {
  const int row = group * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
  for (int i = 0; i < Shape::kWeightRows / 2; ++i) d[i] = 0;
  for (int step = 0; step < steps; ++step) {
    memory.AwaitFull(slot);
    const uint32_t x_scales = memory.scales(slot.index) + row * 4;
    const uint32_t w_scales = memory.scales(slot.index) + kTileRows * 4;
    const StepScales now = {{LoadSharedFloat(x_scales), LoadSharedFloat(x_scales + 32)},
                            {LoadSharedFloat(w_scales), LoadSharedFloat(w_scales + 4)}};
    const uint64_t x = TileDescriptor(memory.x(slot.index) + group * 64 * 128);
    const uint64_t w = TileDescriptor(memory.weights(slot.index));
    TileSums<Shape> part;
    BeginProducts();
#pragma unroll
    for (int k = 0; k < 4; ++k) WgmmaFp8N128(part, x + k * 2, w + k * 2, k > 0);
    CommitProducts();
    AwaitProducts<0>();
    if (threadIdx.x % 32 == 0) memory.HandBack(slot.index);
    AddScaled<Shape>(now, part, d);
    slot.Next();
  }
}

template <bool kGated, int kBlocks>
__global__ void __launch_bounds__(kTileThreads, 1)
    TileFp8Kernel(const __grid_constant__ TileArgs a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) char shared[];
  using Shape = TileShape<fp8, kGated, kBlocks>;
  RunTiles<Shape>(a, shared, [](auto&&... item) { MultiplyItem<Shape>(item...); });
#endif
}

template <bool kGated>
void LaunchTile(TileArgs& args, int max_tiles, CudaContext& context) {
  args.in_pairs
      ? LaunchTiles<TileShape<fp8, kGated, 2>>(TileFp8Kernel<kGated, 2>, args, max_tiles, context)
      : LaunchTiles<TileShape<fp8, kGated, 1>>(TileFp8Kernel<kGated, 1>, args, max_tiles, context);
}

}  // namespace

void LaunchTileFp8(TileArgs& args, bool gated, int max_tiles, CudaContext& context) {
  gated ? LaunchTile<true>(args, max_tiles, context) : LaunchTile<false>(args, max_tiles, context);
}

}  // namespace hadal::cuda
