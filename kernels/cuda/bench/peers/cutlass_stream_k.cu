#include "kernels/cuda/bench/peers/cutlass_dense.cuh"

namespace hadal::bench {

using cute::_1;
using cute::_128;
using cute::_16;
using cute::_64;
using cute::Shape;
using cutlass::gemm::StreamKScheduler;

std::vector<Peer> CutlassStreamK(const cuda::Product& p) {
  HADAL_CHECK(p.matrices == 1 && !p.float_out && p.w->dtype == DType::kBF16);
  if (p.m > 64) return {};
  if (p.m > 16) {
    return {Dense<Shape<_128, _64, _64>, Shape<_1, _1, _1>, StreamKScheduler>::Make(
        "128x64 stream-K", p)};
  }
  return {Dense<Shape<_128, _16, _128>, Shape<_1, _1, _1>, StreamKScheduler>::Make(
      "128x16 stream-K", p)};
}

}  // namespace hadal::bench
