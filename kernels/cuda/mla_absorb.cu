#include "kernels/cuda/held_launch.cuh"
#include "kernels/cuda/mla_input.cuh"
#include "kernels/cuda/ops.h"

// The latent rows of a step of few tokens, its queries' rotary parts and their products with the
// absorbed projections, none of which reads what another one makes: one kernel.
namespace hadal::cuda {
namespace {

// Blocks of the product, then those of MlaInput.
template <typename Tile>
__global__ void __maxnreg__(Tile::kRegisters)
    AbsorbKernel(const __grid_constant__ HeldArgs a, const __grid_constant__ MlaInputParams input,
                 int products, int parts) {
  static_assert(kInputWarps == Tile::kWarps);
  extern __shared__ __align__(16) char memory[];
  if (!a.late) cudaTriggerProgrammaticLaunchCompletion();
  const int block = static_cast<int>(blockIdx.x);
  if (block < products) return HeldProduct<Tile>(a, block, memory);
  InputBlock(input, block - products, parts);
}

template <typename Tile>
void LaunchTile(const HeldArgs& a, const MlaInputParams& input, int products,
                CudaContext& context) {
  LaunchHeld<Tile>(AbsorbKernel<Tile>, products + InputBlocks(input), a.m, context, a, input,
                   products, InputParts(input));
}

template <typename W>
void LaunchAbsorb(const HeldArgs& a, int units, const MlaInputParams& input, int products,
                  CudaContext& context) {
  if (units == 1) return LaunchTile<HeldTile<W, HeldPlan{1}>>(a, input, products, context);
  LaunchTile<HeldTile<W, HeldPlan{2}>>(a, input, products, context);
}

}  // namespace

void MlaInputAndAbsorb(const MlaInputParams& input, const HeadMatMulParams& p,
                       CudaContext& context) {
  const Product product = ProductOf(p);
  const HeldPlan plan = ChooseHeldPlan(product, context);
  const bool together = (plan.units == 1 || plan.units == 2) && p.m > 0 &&
                        input.tokens <= kHeldTokens && InputVectorsFit(input, context);
  if (!together) {
    MlaInput(input, context);
    HeadMatMul(p, context);
    return;
  }
  const HeldArgs a = HeldArgsOf(product, plan, context);
  const int products = a.tiles * p.heads;
  if (product.w->dtype == DType::kBF16) {
    LaunchAbsorb<__nv_bfloat16>(a, plan.units, input, products, context);
  } else {
    LaunchAbsorb<uint8_t>(a, plan.units, input, products, context);
  }
}

}  // namespace hadal::cuda
