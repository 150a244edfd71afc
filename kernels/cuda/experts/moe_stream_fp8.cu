#include "kernels/cuda/experts/moe_stream.cuh"

namespace hadal::cuda {

void LaunchStreamFp8(const StreamArgs& args, bool gated, int tokens, int max_items,
                     CudaContext& context) {
  LaunchStreamOf<fp8>(args, gated, tokens, max_items, context);
}

}  // namespace hadal::cuda
