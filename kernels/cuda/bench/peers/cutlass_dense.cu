// Kernels may start while the one before them runs, as ours do.
#define CUTLASS_ENABLE_GDC_FOR_SM90 1
#include "kernels/cuda/bench/peers/cutlass_dense.cuh"

namespace hadal::bench {

using cute::_1;
using cute::_128;
using cute::_16;
using cute::_2;
using cute::_256;
using cute::_64;
using cute::Shape;

std::vector<Peer> CutlassDense(const cuda::Product& p) {
  HADAL_CHECK(p.matrices == 1 && !p.float_out && p.w->dtype == DType::kBF16);
  if (p.m > 64) {
    return {Dense<Shape<_128, _256, _64>, Shape<_2, _1, _1>, void>::Make("128x256", p)};
  }
  if (p.m > 16) {
    return {Dense<Shape<_128, _64, _64>, Shape<_1, _1, _1>, void>::Make("128x64", p)};
  }
  return {Dense<Shape<_128, _16, _128>, Shape<_1, _1, _1>, void>::Make("128x16", p)};
}

}  // namespace hadal::bench
