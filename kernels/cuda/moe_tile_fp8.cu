#include "kernels/cuda/moe_tile.cuh"

namespace hadal::cuda {
namespace {

// Sums of 128 weight rows, of one step.
using PartSums = float[64];
constexpr int kPartWeightBytes = 128 * 128;

// Of a step: of a thread's rows g and g + 8, and of the two halves of the weight rows (gate and up,
// or outputs and those behind them).
struct StepScales {
  float x[2], w[2];

  __device__ __forceinline__ static StepScales Of(uint32_t scales, int row) {
    const uint32_t x = scales + row * 4, w = scales + kTileRows * 4;
    return {{LoadSharedFloat(x), LoadSharedFloat(x + 32)},
            {LoadSharedFloat(w), LoadSharedFloat(w + 4)}};
  }
};

// Sums of weight rows from 128 kPart on += those of one step times their scales.
template <typename Shape, int kPart>
__device__ __forceinline__ void AddScaled(const StepScales& s, const PartSums& part,
                                          TileSums<Shape>& d) {
  constexpr int kHalf = Shape::kWeightRows / 4;  // sums of a half
#pragma unroll
  for (int i = 0; i < 64; i += 4) {
    const int at = kPart * 64 + i, half = at / kHalf;
    const float low = s.x[0] * s.w[half], high = s.x[1] * s.w[half];
    d[at] += low * part[i];
    d[at + 1] += low * part[i + 1];
    d[at + 2] += high * part[i + 2];
    d[at + 3] += high * part[i + 3];
  }
}

template <typename Shape, int kPart>
__device__ __forceinline__ void MultiplyPart(const TileMemory<Shape>& memory, int group, int slot,
                                             const StepScales& scales, TileSums<Shape>& d) {
  const uint64_t x = TileDescriptor(memory.x(slot) + group * 64 * 128);
  const uint64_t w = TileDescriptor(memory.weights(slot) + kPart * kPartWeightBytes);
  PartSums part;
  BeginProducts();
#pragma unroll
  for (int k = 0; k < 4; ++k) WgmmaFp8N128(part, x + k * 2, w + k * 2, k > 0);
  CommitProducts();
  AwaitProducts<0>();
  constexpr bool kLast = (kPart + 1) * 128 == Shape::kWeightRows;
  if (kLast && threadIdx.x % 32 == 0) memory.HandBack(slot);
  AddScaled<Shape, kPart>(scales, part, d);
}

template <typename Shape>
__device__ __forceinline__ void MultiplyItem(const TileMemory<Shape>& memory, int steps, int group,
                                             TileSlot<Shape::kSlots>& slot, TileSums<Shape>& d) {
  const int row = group * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
  for (int i = 0; i < Shape::kWeightRows / 2; ++i) d[i] = 0;
  for (int step = 0; step < steps; ++step) {
    memory.AwaitFull(slot);
    const auto scales = StepScales::Of(memory.scales(slot.index), row);
    MultiplyPart<Shape, 0>(memory, group, slot.index, scales, d);
    if constexpr (Shape::kWeightRows == 256) {
      MultiplyPart<Shape, 1>(memory, group, slot.index, scales, d);
    }
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

// Whether 128 gate rows and their up rows each have one row of scales.
bool HalvesAreBlocks(const TileArgs& args) {
  return args.shared.n % 128 == 0 && args.experts.n % 128 == 0;
}

template <bool kGated>
void LaunchTile(TileArgs& args, int max_tiles, CudaContext& context) {
  args.in_pairs && (!kGated || HalvesAreBlocks(args))
      ? LaunchTiles<TileShape<fp8, kGated, 2>>(TileFp8Kernel<kGated, 2>, args, max_tiles, context)
      : LaunchTiles<TileShape<fp8, kGated, 1>>(TileFp8Kernel<kGated, 1>, args, max_tiles, context);
}

}  // namespace

void LaunchTileFp8(TileArgs& args, bool gated, int max_tiles, CudaContext& context) {
  gated ? LaunchTile<true>(args, max_tiles, context) : LaunchTile<false>(args, max_tiles, context);
}

}  // namespace hadal::cuda
