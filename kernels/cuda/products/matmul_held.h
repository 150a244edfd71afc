#pragma once

#include "kernels/cuda/products/matmul.h"

namespace hadal::cuda {

// Registers of a lane. With 88 of them 16 warps fit beside a block of the experts' second product.
constexpr int HeldRegisters(const HeldPlan& plan) {
  if (plan.units == 8) return 104;
  return plan.units == 4 && !plan.codes ? 88 : 64;
}
// Blocks that an SM runs at once.
constexpr int HeldPerSm(const HeldPlan& plan) {
  return 65536 / (32 * plan.warps * HeldRegisters(plan));
}

}  // namespace hadal::cuda
