#include "kernels/cuda/products/few_launch.cuh"

namespace hadal::cuda {

void LaunchFewBf16(const Product& p, const FewPlan& plan, CudaContext& context) {
  if (p.m <= 8) return LaunchRows<__nv_bfloat16, 8>(p, plan, context);
  if (p.m <= 16) return LaunchRows<__nv_bfloat16, 16>(p, plan, context);
  if (p.m <= 32) return LaunchRows<__nv_bfloat16, 32>(p, plan, context);
  LaunchRows<__nv_bfloat16, 64>(p, plan, context);
}

}  // namespace hadal::cuda
