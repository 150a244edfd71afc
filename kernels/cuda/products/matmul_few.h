#pragma once

#include "kernels/cuda/products/matmul.h"

namespace hadal::cuda {

// MatMulFew() of either type of weights, after its checks.
void LaunchFewBf16(const Product& p, const FewPlan& plan, CudaContext& context);
void LaunchFewF8(const Product& p, const FewPlan& plan, CudaContext& context);

}  // namespace hadal::cuda
