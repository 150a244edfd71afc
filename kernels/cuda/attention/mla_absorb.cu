#include "kernels/cuda/attention/mla_input.cuh"
#include "kernels/cuda/attention/ops.h"
#include "kernels/cuda/products/held_launch.cuh"
#include "kernels/cuda/products/ops.h"

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
  AllowNext();
  const int block = static_cast<int>(blockIdx.x);
  if (block < products) return HeldProduct<Tile>(a, block, memory);
  InputBlock(input, block - products, parts);
}

template <int kUnits>
void LaunchAbsorb(const HeldArgs& a, const MlaInputParams& input, int products,
                  CudaContext& context) {
  using Tile = HeldTile<__nv_bfloat16, HeldPlan{kUnits}>;
  LaunchHeld<Tile>(AbsorbKernel<Tile>, products + InputBlocks(input), a.m, context, a, input,
                   products, InputParts(input));
}

}  // namespace

void MlaInputAndAbsorb(const MlaInputParams& input, const HeadMatMulParams& p,
                       CudaContext& context) {
  const Product product = ProductOf(p);
  const HeldPlan plan = ChooseHeldPlan(product, context);
  // Beside bf16 activations heads are packed in bf16, those of an FP8 checkpoint too.
  const bool together = product.w->dtype == DType::kBF16 && (plan.units == 1 || plan.units == 2) &&
                        p.m > 0 && input.tokens <= kHeldTokens && InputVectorsFit(input, context);
  if (!together) {
    MlaInput(input, context);
    HeadMatMul(p, context);
    return;
  }
  const HeldArgs a = HeldArgsOf(product, plan, context);
  const int products = a.tiles * p.heads;
  if (plan.units == 1) return LaunchAbsorb<1>(a, input, products, context);
  LaunchAbsorb<2>(a, input, products, context);
}

}  // namespace hadal::cuda
