#include <cmath>
#include <cstdio>

#include "kernels/cuda/bench/peers/compare.h"
#include "kernels/cuda/device/convert.cuh"

namespace hadal::bench {
namespace {

// Both sides round outputs to bf16, and some what lies between two products: 0.2 to 0.4 %. One
// wrong tile in a thousand would be 4 %.
constexpr double kTolerance = 0.01;

template <typename A, typename B>
__global__ void DifferenceKernel(const A* a, const B* b, int64_t count, double* sums) {
  double difference = 0, norm = 0, product = 0;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const double x = cuda::ToFloat(a[i]), y = cuda::ToFloat(b[i]);
    difference += (x - y) * (x - y);
    norm += x * x;
    product += x * y;
  }
  for (int lane = 16; lane > 0; lane /= 2) {
    difference += __shfl_xor_sync(0xffffffffu, difference, lane);
    norm += __shfl_xor_sync(0xffffffffu, norm, lane);
    product += __shfl_xor_sync(0xffffffffu, product, lane);
  }
  if (threadIdx.x % 32 == 0) {
    atomicAdd(sums, difference);
    atomicAdd(sums + 1, norm);
    atomicAdd(sums + 2, product);
  }
}

template <typename A>
void Difference(const A* a, const Output& b, int64_t count, double* sums, CudaContext& context) {
  const unsigned blocks = static_cast<unsigned>(8 * context.sm_count);
  if (b.dtype == DType::kF32) {
    DifferenceKernel<<<blocks, 256, 0, context.stream>>>(a, static_cast<const float*>(b.data),
                                                         count, sums);
  } else {
    DifferenceKernel<<<blocks, 256, 0, context.stream>>>(a, static_cast<const cuda::bf16*>(b.data),
                                                         count, sums);
  }
  HADAL_CUDA_LAUNCHED();
}

// NaN where a value is NaN or all of a is zero.
struct Agreement {
  double error = 0;  // |a - b| / |a|, Frobenius
  double ratio = 0;  // ratio * a comes closest to b
};

Agreement Agree(const Output& a, const Output& b, int64_t count, CudaContext& context) {
  const SharedDevice sums = OwnDevice(Upload(std::vector<double>{0, 0, 0}));
  auto* device = static_cast<double*>(sums.get());
  a.dtype == DType::kF32
      ? Difference(static_cast<const float*>(a.data), b, count, device, context)
      : Difference(static_cast<const cuda::bf16*>(a.data), b, count, device, context);
  double host[3];
  HADAL_CUDA(cudaMemcpyAsync(host, device, sizeof(host), cudaMemcpyDefault, context.stream));
  HADAL_CUDA(cudaStreamSynchronize(context.stream));
  return {std::sqrt(host[0] / host[1]), host[2] / host[1]};
}

// Of call 0, in memory of its own: timing leaves another call's values in the contender's.
std::function<Output()> Keep(const Contender& contender, int64_t count, CudaContext& context) {
  contender.run(0);
  const Output output = contender.output();
  const int64_t bytes = count * DTypeSize(output.dtype);
  const SharedDevice copy = OwnDevice(DeviceBytes(bytes));
  HADAL_CUDA(cudaMemcpyAsync(copy.get(), output.data, static_cast<size_t>(bytes),
                             cudaMemcpyDeviceToDevice, context.stream));
  return OutputAt(copy, output.dtype);
}

struct Fastest {
  std::string name;
  double us = 0;
};

Fastest FastestOf(const Comparison& c, const std::vector<Contender>& side, const Output& reference,
                  CudaContext& context) {
  Fastest best;
  for (const Contender& contender : side) {
    contender.run(0);
    const auto [error, ratio] = Agree(reference, contender.output(), c.count, context);
    if (!(error <= kTolerance)) {
      std::printf("%-38s %s: differs by %.3g, nearest to %.3g times ours, not timed\n",
                  c.what.c_str(), contender.name.c_str(), error, ratio);
      continue;
    }
    const double us = MedianMicros(c.calls, contender.run, context);
    if (best.us == 0 || us < best.us) best = {contender.name, us};
  }
  return best;
}

}  // namespace

SharedDevice OwnDevice(void* data) {
  return SharedDevice(data, [](void* p) { cudaFree(p); });
}

std::function<Output()> OutputAt(SharedDevice data, DType dtype) {
  return [data, dtype] { return Output{data.get(), dtype}; };
}

SharedDevice Unwritten(int64_t bytes, CudaContext& context) {
  SharedDevice data = OwnDevice(DeviceBytes(bytes));
  HADAL_CUDA(cudaMemsetAsync(data.get(), 0xff, static_cast<size_t>(bytes), context.stream));
  return data;
}

void PrintComparisonHeader() {
  std::printf("%-38s %9s  %-18s %9s  %-30s %s\n", "", "ours us", "", "peer us", "", "peer / ours");
}

void Compare(const Comparison& c, CudaContext& context) {
  const std::function<Output()> kept = Keep(c.ours.front(), c.count, context);
  const Output reference = kept();
  const Fastest ours = FastestOf(c, c.ours, reference, context);
  const Fastest theirs = FastestOf(c, c.theirs, reference, context);
  if (ours.us == 0 || theirs.us == 0) return;
  std::printf("%-38s %9.1f  %-18s %9.1f  %-30s %.2f\n", c.what.c_str(), ours.us, ours.name.c_str(),
              theirs.us, theirs.name.c_str(), theirs.us / ours.us);
}

}  // namespace hadal::bench
