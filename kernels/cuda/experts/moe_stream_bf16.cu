#include "kernels/cuda/experts/moe_stream.cuh"

namespace hadal::cuda {

void LaunchStreamBf16(const StreamArgs& args, bool gated, int tokens, int max_items,
                      CudaContext& context) {
  LaunchStreamOf<bf16>(args, gated, tokens, max_items, context);
}

}  // namespace hadal::cuda
