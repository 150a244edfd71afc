#include "kernels/cuda/products/few_launch.cuh"

namespace hadal::cuda {

void LaunchFewF8(const Product& p, const FewPlan& plan, CudaContext& context) {
  if (p.m <= 8) return LaunchRows<uint8_t, 8>(p, plan, context);
  if (p.m <= 16) return LaunchRows<uint8_t, 16>(p, plan, context);
  if (p.m <= 32) return LaunchRows<uint8_t, 32>(p, plan, context);
  LaunchRows<uint8_t, 64>(p, plan, context);
}

}  // namespace hadal::cuda
