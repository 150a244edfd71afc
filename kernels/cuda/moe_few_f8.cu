#include <algorithm>

#include "common/rounding.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moe_few_f8.h"
#include "kernels/cuda/moe_few_f8_fine.cuh"
#include "kernels/cuda/moe_few_f8_w13.cuh"
#include "kernels/cuda/moe_few_f8_w2.cuh"

namespace hadal::cuda {
namespace {

// The same carve-out for both: an SM that has to change it cannot start one beside the other.
void Prepare(void (*kernel)(FewF8Args)) {
  HADAL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared));
  HADAL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(kFewSharedBytes)));
}

void LaunchW2(const FewF8Args& a, CudaContext& context) {
  const int64_t tiles = CeilDiv(a.few.dim, 64);
  int splits = 1;
  while (splits < kF8W2MaxSplits && tiles * splits * 2 <= context.sm_count) splits *= 2;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(splits), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(splits), static_cast<unsigned>(tiles));
  config.blockDim = dim3(kF8W2Threads);
  // Where one block an SM is enough, no two should meet on one while others are idle.
  const int64_t alone = splits < 4 ? kFewSharedBytes / 2 + 1024 : 0;
  config.dynamicSmemBytes = static_cast<size_t>(std::max(alone, FewF8W2SharedBytes()));
  config.stream = context.stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  HADAL_CUDA(cudaLaunchKernelEx(&config, FewF8W2Kernel, a));
}

}  // namespace

bool FewF8Fits(const FewArgs& a) {
  return a.width % 8 == 0 && a.shared_width % 8 == 0 && FewF8W13SharedBytes(a) <= kFewSharedBytes;
}

void LaunchFewF8Experts(const FewArgs& args, int count, int rows, CudaContext& context) {
  static const bool once = [] {
    Prepare(FewF8W13Kernel);
    Prepare(FewF8FineKernel);
    Prepare(FewF8W2Kernel);
    return true;
  }();
  (void)once;
  FewF8Args a{};
  a.few = args;
  a.w2 = RowMap(args.w2, count);
  a.shared2 = args.shared_width == 0 ? a.w2 : RowMap(args.shared2, 1);
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
  LaunchW2(a, context);
}

}  // namespace hadal::cuda
