#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/hopper.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/experts/moe_tile.cuh"

namespace hadal::cuda {
namespace {

// A step's products of at most 128 weight rows at a time, in sums of their own.
template <typename Shape>
constexpr int kPartRows = Shape::kGroupRows < 128 ? Shape::kGroupRows : 128;

// Of a step: of a thread's rows g and g + 8, and of the two halves of the weight rows (gate and up,
// or outputs and those behind them).
struct StepScales {
  float x[2], w[2];

  template <typename Shape>
  __device__ __forceinline__ static StepScales Of(uint32_t scales, int row) {
    const uint32_t x = scales + row * 4, w = scales + Shape::kRows * 4;
    return {{LoadSharedFloat(x), LoadSharedFloat(x + 32)},
            {LoadSharedFloat(w), LoadSharedFloat(w + 4)}};
  }
};

// Sums of weight rows from kPartRows kPart on += those of one step times their scales.
template <typename Shape, int kPart>
__device__ __forceinline__ void AddScaled(const StepScales& s, int group,
                                          const float (&part)[kPartRows<Shape> / 2],
                                          TileSums<Shape>& d) {
  constexpr bool kHalves =
      Shape::kIsGated || Shape::kRows == 128;  // of a warpgroup's own weight rows
#pragma unroll
  for (int i = 0; i < kPartRows<Shape> / 2; i += 4) {
    const int at = kPart * kPartRows<Shape> / 2 + i;
    const float w = kHalves ? s.w[at / (Shape::kSums / 2)] : group == 0 ? s.w[0] : s.w[1];
    const float low = s.x[0] * w, high = s.x[1] * w;
    d[at] += low * part[i];
    d[at + 1] += low * part[i + 1];
    d[at + 2] += high * part[i + 2];
    d[at + 3] += high * part[i + 3];
  }
}

template <typename Shape, int kPart>
__device__ __forceinline__ void MultiplyPart(const TileMemory<Shape>& memory, int group, int slot,
                                             const StepScales& scales, TileSums<Shape>& d) {
  const uint64_t x = TileDescriptor(memory.group_x(slot, group));
  const uint64_t w =
      TileDescriptor(memory.group_weights(slot, group) + kPart * kPartRows<Shape> * 128);
  float part[kPartRows<Shape> / 2];
  BeginProducts();
#pragma unroll
  for (int k = 0; k < 4; ++k) WgmmaFp8(part, x + k * 2, w + k * 2, k > 0);
  CommitProducts();
  AwaitProducts<0>();
  constexpr bool kLast = (kPart + 1) * kPartRows<Shape> == Shape::kGroupRows;
  if (kLast && threadIdx.x % 32 == 0) memory.HandBack(slot);
  AddScaled<Shape, kPart>(scales, group, part, d);
}

template <typename Shape>
__device__ __forceinline__ void MultiplyItem(const TileMemory<Shape>& memory, int steps, int group,
                                             TileSlot<Shape::kSlots>& slot, TileSums<Shape>& d) {
  const int row =
      (Shape::kRows == 64 ? 0 : group * 64) + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
  for (int i = 0; i < Shape::kSums; ++i) d[i] = 0;
  for (int step = 0; step < steps; ++step) {
    memory.AwaitFull(slot);
    const auto scales = StepScales::Of<Shape>(memory.scales(slot.index), row);
    MultiplyPart<Shape, 0>(memory, group, slot.index, scales, d);
    if constexpr (Shape::kGroupRows == 256)
      MultiplyPart<Shape, 1>(memory, group, slot.index, scales, d);
    slot.Next();
  }
}

template <bool kGated, int kBlocks, int kWeightRows, int kRows>
__global__ void __launch_bounds__(kTileThreads, 1)
    TileFp8Kernel(const __grid_constant__ TileArgs a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) char shared[];
  using Shape = TileShape<fp8, kGated, kBlocks, kWeightRows, kRows>;
  RunTiles<Shape>(a, shared, [](auto&&... item) { MultiplyItem<Shape>(item...); });
#endif
}

template <bool kGated, int kBlocks, int kWeightRows, int kRows>
void LaunchShape(TileArgs& args, int max_tiles, CudaContext& context) {
  LaunchTiles<TileShape<fp8, kGated, kBlocks, kWeightRows, kRows>>(
      TileFp8Kernel<kGated, kBlocks, kWeightRows, kRows>, args, max_tiles, context);
}

template <bool kGated>
void LaunchTile(TileArgs& args, int max_tiles, CudaContext& context) {
  const bool wide = !kGated || HalvesAreBlocks(args);
  if (args.in_pairs && wide) return LaunchShape<kGated, 2, 256, 128>(args, max_tiles, context);
  if (args.tile_rows == kSmallTileRows && args.weight_rows == 256 && wide) {
    return LaunchShape<kGated, 1, 256, 64>(args, max_tiles, context);
  }
  args.tile_rows == kTileRows ? LaunchShape<kGated, 1, 128, 128>(args, max_tiles, context)
                              : LaunchShape<kGated, 1, 128, 64>(args, max_tiles, context);
}

}  // namespace

void LaunchTileFp8(TileArgs& args, bool gated, int max_tiles, CudaContext& context) {
  gated ? LaunchTile<true>(args, max_tiles, context) : LaunchTile<false>(args, max_tiles, context);
}

}  // namespace hadal::cuda
