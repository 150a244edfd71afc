#include "kernels/cuda/products/held_launch.cuh"

namespace hadal::cuda {
namespace {

template <typename Tile>
void LaunchTile(const HeldArgs& a, int blocks, CudaContext& context) {
  LaunchHeld<Tile>(HeldKernel<Tile>, blocks, a.m, context, a);
}

template <typename W>
void LaunchOf(const HeldArgs& a, const HeldPlan& plan, int blocks, CudaContext& context) {
  if (plan.units == 1) return LaunchTile<HeldTile<W, HeldPlan{1}>>(a, blocks, context);
  if (plan.units == 2) return LaunchTile<HeldTile<W, HeldPlan{2}>>(a, blocks, context);
  if (plan.warps == 8) return LaunchTile<HeldTile<W, HeldPlan{4}>>(a, blocks, context);
  LaunchTile<HeldTile<W, HeldPlan{4, 16}>>(a, blocks, context);
}

void LaunchProduct(const HeldArgs& a, const Product& p, const HeldPlan& plan,
                   CudaContext& context) {
  const int blocks = a.tiles * p.matrices;
  if (p.w->dtype == DType::kBF16) return LaunchOf<__nv_bfloat16>(a, plan, blocks, context);
  if (!plan.codes) return LaunchOf<uint8_t>(a, plan, blocks, context);
  if (plan.units == 4)
    return LaunchTile<HeldTile<uint8_t, HeldPlan{4, 8, true}>>(a, blocks, context);
  LaunchTile<HeldTile<uint8_t, HeldPlan{8, 16, true}>>(a, blocks, context);
}

bool Exists(const Product& p, const HeldPlan& plan, const CudaContext& context) {
  return HeldFits(p, context) && (p.w->dtype == DType::kF8E4M3 || !plan.codes) &&
         HeldSplits(*p.w, plan) <= plan.warps;
}

bool AllRunAtOnce(const Product& p, const HeldPlan& plan, const CudaContext& context) {
  const int64_t slots = int64_t{context.sm_count} * HeldPerSm(plan);
  return int64_t{HeldTiles(*p.w, plan)} * p.matrices <= slots;
}

}  // namespace

HeldPlan ChooseHeldPlan(const Product& p, const CudaContext& context) {
  for (const HeldPlan& plan : kHeldPlans) {
    // Half as many blocks leave room for the kernel behind, decode attention, to start beside them.
    if (plan.units == 1 && p.matrices > 1 && p.w->k > kHeldUnit) continue;
    if (Exists(p, plan, context) && AllRunAtOnce(p, plan, context)) return plan;
  }
  return {};
}

bool MatMulHeld(const Product& p, const HeldPlan& plan, CudaContext& context) {
  if (!Exists(p, plan, context)) return false;
  if (p.m > 0) LaunchProduct(HeldArgsOf(p, plan, context), p, plan, context);
  return true;
}

bool MatMulHeld(const Product& p, CudaContext& context) {
  const HeldPlan plan = ChooseHeldPlan(p, context);
  return plan.units > 0 && MatMulHeld(p, plan, context);
}

}  // namespace hadal::cuda
