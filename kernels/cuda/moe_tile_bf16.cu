#include "kernels/cuda/moe_tile.cuh"

namespace hadal::cuda {
namespace {

// The sums of one item; the products of a step run while the slot before it is handed back.
template <typename Shape>
__device__ __forceinline__ void MultiplyItem(const TileMemory<Shape>& memory, int steps, int group,
                                             TileSlot& slot, TileSums<Shape>& d) {
  const bool speaks = threadIdx.x % 32 == 0;
  int before = slot.index;  // slot to hand back
  for (int step = 0; step < steps; ++step) {
    AwaitBarrier(memory.full(slot.index), slot.parity);
    const uint64_t x = TileDescriptor(memory.x(slot.index) + group * 64 * 128);
    const uint64_t w = TileDescriptor(memory.weights(slot.index));
    BeginProducts();
#pragma unroll
    for (int k = 0; k < 4; ++k) WgmmaBf16N256(d, x + k * 2, w + k * 2, step > 0 || k > 0);
    CommitProducts();
    AwaitProducts<1>();
    if (step > 0 && speaks) Arrive(memory.empty(before));
    before = slot.index;
    slot.Next();
  }
  AwaitProducts<0>();
  if (speaks) Arrive(memory.empty(before));
}

// A warpgroup without rows only hands the slots on.
template <typename Shape>
__device__ __forceinline__ void PassItem(const TileMemory<Shape>& memory, int steps,
                                         TileSlot& slot) {
  for (int step = 0; step < steps; ++step) {
    AwaitBarrier(memory.full(slot.index), slot.parity);
    if (threadIdx.x % 32 == 0) Arrive(memory.empty(slot.index));
    slot.Next();
  }
}

template <bool kGated>
__global__ void __launch_bounds__(kTileThreads, 1)
    TileBf16Kernel(const __grid_constant__ TileArgs a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) char shared[];
  using Shape = TileShape<bf16, kGated>;
  const TileMemory<Shape> memory(shared);
  if (threadIdx.x == 0) {
    memory.InitBarriers();
    PrefetchMap(&a.shared_map);
    PrefetchMap(&a.experts_map);
  }
  __syncthreads();
  WaitForPrevious();
  AllowNext();
  if (threadIdx.x < kTileProducers) {
    GiveRegisters<56>();
    Produce<bf16, kGated>(a, memory);
  } else {
    TakeRegisters<224>();
    const TileItems<Shape> items(a);
    const int group = Uniform(static_cast<int>(threadIdx.x) / 128) - 1;
    TileSlot slot;
    TileItem next = items.At(blockIdx.x);
    for (int i = blockIdx.x; i < items.count; i += gridDim.x) {
      const TileItem item = next;
      next = items.At(i + gridDim.x);
      const int steps = items.Steps(item);
      if (group * 64 >= item.tile.count) {
        PassItem(memory, steps, slot);
        continue;
      }
      TileSums<Shape> d;
      MultiplyItem<Shape>(memory, steps, group, slot, d);
      StoreTile<bf16, kGated>(memory, items.part(item), item, d);
    }
  }
#endif
}

template <bool kGated>
void LaunchTile(TileArgs& args, int max_tiles, CudaContext& context) {
  using Shape = TileShape<bf16, kGated>;
  const auto kernel = TileBf16Kernel<kGated>;
  static const bool once = [&] {
    HADAL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    Shape::kSharedBytes));
    return true;
  }();
  (void)once;
  constexpr int kBox = Shape::kWeightRows / 2;
  args.experts_map = WeightMap(args.experts, DType::kBF16, kBox);
  args.shared_map =
      args.shared.n == 0 ? args.experts_map : WeightMap(args.shared, DType::kBF16, kBox);
  const auto tiles = [](int n, int of) { return (n + of - 1) / of; };
  const int64_t items =
      int64_t{tiles(args.shared.rows, kTileRows)} * tiles(args.shared.n, Shape::kOutputs) +
      int64_t{max_tiles} * tiles(args.experts.n, Shape::kOutputs);
  const auto blocks = static_cast<unsigned>(std::clamp<int64_t>(items, 1, context.sm_count));
  Launch(kernel, blocks, kTileThreads, Shape::kSharedBytes, context, args);
}

}  // namespace

void LaunchTileBf16(TileArgs& args, bool gated, int max_tiles, CudaContext& context) {
  gated ? LaunchTile<true>(args, max_tiles, context) : LaunchTile<false>(args, max_tiles, context);
}

}  // namespace hadal::cuda
