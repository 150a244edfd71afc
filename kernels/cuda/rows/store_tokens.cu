#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/rows/ops.h"

namespace hadal::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void StoreTokensKernel(StoreTokensParams p) {
  WaitForPrevious();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i < p.rows && p.slots[i] >= 0) p.last_tokens[p.slots[i]] = p.tokens[i].token;
}

}  // namespace

void StoreTokens(const StoreTokensParams& p, CudaContext& context) {
  if (p.rows == 0) return;
  Launch(StoreTokensKernel, dim3((p.rows + kThreads - 1) / kThreads), dim3(kThreads), 0, context,
         p);
  HADAL_CUDA_LAUNCHED();
}

}  // namespace hadal::cuda
