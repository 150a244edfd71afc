#include <algorithm>

#include "common/rounding.h"

#include "kernels/cuda/products/matmul_few.h"

namespace hadal::cuda {
namespace {

bool Fits(const Product& p) {
  const CudaPackedWeight& w = *p.w;
  const auto aligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; };
  return aligned(p.x) && aligned(w.data) && p.x_stride % 8 == 0 && p.x_matrix_stride % 8 == 0 &&
         w.n % 16 == 0 && w.k_lead % 16 == 0;
}

}  // namespace

FewPlan ChooseFewPlan(const Product& p, const CudaContext& context) {
  const CudaPackedWeight& w = *p.w;
  const bool f8 = w.dtype == DType::kF8E4M3;
  FewPlan plan{.rows = p.m <= 16 && !IsLargeF8(w) ? 64 : 128, .splits = 1};
  const int64_t tiles =
      CeilDiv(w.n, plan.rows) * p.matrices * CeilDiv(p.m, 64);
  const int64_t step = 128 / DTypeSize(w.dtype) * (128 / plan.rows);
  const int64_t steps = CeilDiv(w.k_lead + w.k, step);
  // Blocks that run at once: FP8 of many tokens takes the registers of an SM, else two share it.
  const int64_t slots = (f8 && p.m > 32 ? 1 : 2) * int64_t{context.sm_count};
  // A block on (nearly) every multiprocessor; of FP8, whose bytes arrive sooner than they are
  // converted, two. What a cluster of 4 or 8 cannot use of the card is about a tenth.
  const auto more = [&](int64_t blocks) {
    return f8 ? blocks * 2 <= slots : blocks * 7 < int64_t{context.sm_count} * 6;
  };
  const auto fits = [&](int splits) { return splits < 4 || tiles <= slots * 10 / 11 / splits; };
  while (plan.splits * 2 <= std::min<int64_t>(plan.rows / 16, steps) &&
         more(tiles * plan.splits) && fits(2 * plan.splits)) {
    plan.splits *= 2;
  }
  return plan;
}

bool MatMulFew(const Product& p, const FewPlan& plan, CudaContext& context) {
  if (context.act != DType::kBF16 || context.arch != 90) return false;
  if (p.w->dtype == DType::kF32 || !Fits(p) || (p.silu_mul && p.float_out)) return false;
  if (p.m == 0) return true;
  if (p.w->dtype == DType::kBF16) {
    LaunchFewBf16(p, plan, context);
  } else {
    LaunchFewF8(p, plan, context);
  }
  return true;
}

bool MatMulFew(const Product& p, CudaContext& context) {
  return MatMulFew(p, ChooseFewPlan(p, context), context);
}

}  // namespace hadal::cuda
