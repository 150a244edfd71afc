#include <algorithm>

#include "common/rounding.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe_few_f8.h"
#include "kernels/cuda/moe_few_f8_fine.cuh"
#include "kernels/cuda/moe_few_f8_w13.cuh"
#include "kernels/cuda/moe_few_f8_w2.cuh"

namespace hadal::cuda {
namespace {

void Prepare(void (*kernel)(FewF8Args)) {
  HADAL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(kFewSharedBytes)));
}

template <int kFold>
void LaunchW2(FewF8Args& a, int count, int splits, CudaContext& context) {
  using Tile = F8W2Tile<kFold>;
  a.w2 = RowMap(a.few.w2, count, Tile::kRows);
  a.shared2 = a.few.shared_width == 0 ? a.w2 : RowMap(a.few.shared2, 1, Tile::kRows);
  const dim3 grid(static_cast<unsigned>(splits),
                  static_cast<unsigned>(CeilDiv(a.few.dim, Tile::kRows)));
  // Where one block an SM is enough, no two should meet on one while others are idle.
  const int64_t alone = kFold == 1 ? kFewAloneBytes : 0;
  LaunchClusters(FewF8W2Kernel<kFold>, grid, splits, dim3(kF8W2Threads),
                 static_cast<size_t>(std::max(alone, FewF8W2SharedBytes<kFold>())), context, a);
}

// Clusters of at most two, as larger ones leave SMs out.
void LaunchW2(FewF8Args& a, int count, CudaContext& context) {
  const int64_t tiles = CeilDiv(a.few.dim, 64);
  if (tiles * 4 <= context.sm_count) return LaunchW2<2>(a, count, 2, context);
  LaunchW2<1>(a, count, tiles * 2 <= context.sm_count ? 2 : 1, context);
}

}  // namespace

bool FewF8Fits(const FewExpertsArgs& a) {
  return a.width % 8 == 0 && a.shared_width % 8 == 0 && FewF8W13SharedBytes(a) <= kFewSharedBytes;
}

void LaunchFewF8Experts(const FewExpertsArgs& args, int count, int rows, CudaContext& context) {
  static const bool once = [] {
    Prepare(FewF8W13Kernel);
    Prepare(FewF8FineKernel);
    Prepare(FewF8W2Kernel<1>);
    Prepare(FewF8W2Kernel<2>);
    return true;
  }();
  (void)once;
  FewF8Args a{};
  a.few = args;
  const bool fine = FewF8FineFits(args);
  const auto map = fine ? PairBlockMap : PairMap;
  a.w13 = map(args.w13, count);
  a.shared13 = args.shared_width == 0 ? a.w13 : map(args.shared13, 1);
  const int of_item = fine ? 8 : 32;
  const int64_t items = CeilDiv(args.shared_width, of_item) + rows * CeilDiv(args.width, of_item);
  const auto blocks = static_cast<unsigned>(std::clamp<int64_t>(items, 1, context.sm_count));
  const int64_t shared = fine ? FewF8FineSharedBytes(args) : FewF8W13SharedBytes(args);
  Launch(fine ? FewF8FineKernel : FewF8W13Kernel, blocks, kF8Threads, static_cast<size_t>(shared),
         context, a);
  LaunchW2(a, count, context);
}

}  // namespace hadal::cuda
