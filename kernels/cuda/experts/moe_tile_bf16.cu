#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/hopper.cuh"
#include "kernels/cuda/experts/moe_tile.cuh"

namespace hadal::cuda {
namespace {

// The sums of one item; the products of a step run while the slot before it is handed back.
template <typename Shape>
__device__ __forceinline__ void MultiplyItem(const TileMemory<Shape>& memory, int steps, int group,
                                             TileSlot<Shape::kSlots>& slot, TileSums<Shape>& d) {
  const bool speaks = threadIdx.x % 32 == 0;
  int before = slot.index;  // slot to hand back
  for (int step = 0; step < steps; ++step) {
    memory.AwaitFull(slot);
    const uint64_t x = TileDescriptor(memory.group_x(slot.index, group));
    const uint64_t w = TileDescriptor(memory.group_weights(slot.index, group));
    BeginProducts();
#pragma unroll
    for (int k = 0; k < 4; ++k) WgmmaBf16(d, x + k * 2, w + k * 2, step > 0 || k > 0);
    CommitProducts();
    AwaitProducts<1>();
    if (step > 0 && speaks) memory.HandBack(before);
    before = slot.index;
    slot.Next();
  }
  AwaitProducts<0>();
  if (speaks) memory.HandBack(before);
}

template <bool kGated, int kBlocks, int kWeightRows, int kRows>
__global__ void __launch_bounds__(kTileThreads, 1)
    TileBf16Kernel(const __grid_constant__ TileArgs a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) char shared[];
  using Shape = TileShape<bf16, kGated, kBlocks, kWeightRows, kRows>;
  RunTiles<Shape>(a, shared, [](auto&&... item) { MultiplyItem<Shape>(item...); });
#endif
}

template <bool kGated, int kBlocks, int kWeightRows, int kRows>
void LaunchShape(TileArgs& args, int max_tiles, CudaContext& context) {
  LaunchTiles<TileShape<bf16, kGated, kBlocks, kWeightRows, kRows>>(
      TileBf16Kernel<kGated, kBlocks, kWeightRows, kRows>, args, max_tiles, context);
}

template <bool kGated>
void LaunchTile(TileArgs& args, int max_tiles, CudaContext& context) {
  if (args.in_pairs) return LaunchShape<kGated, 2, 256, 128>(args, max_tiles, context);
  if (args.tile_rows == kSmallTileRows && args.weight_rows == 256) {
    return LaunchShape<kGated, 1, 256, 64>(args, max_tiles, context);
  }
  args.tile_rows == kTileRows ? LaunchShape<kGated, 1, 256, 128>(args, max_tiles, context)
                              : LaunchShape<kGated, 1, 128, 64>(args, max_tiles, context);
}

}  // namespace

void LaunchTileBf16(TileArgs& args, bool gated, int max_tiles, CudaContext& context) {
  gated ? LaunchTile<true>(args, max_tiles, context) : LaunchTile<false>(args, max_tiles, context);
}

}  // namespace hadal::cuda
