#include <cstdio>
#include <vector>

#include "kernels/cuda/bench/probes.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/cuda_check.h"
#include "kernels/cuda/routing/ops.h"

// Times the routers of the released models against what the card's memory allows. Gates rotate;
// those of the smaller model stay in the cache.
namespace hadal::bench {
namespace {

struct Shape {
  const char* what;
  int64_t dim;
  int experts, top_k;
  bool sigmoid;
};

constexpr Shape k16B = {"16B", 2048, 64, 6, false};
constexpr Shape k671B = {"671B", 7168, 256, 8, true};

void BenchRoute(const Shape& s, int tokens, const Ceilings& ceilings, CudaContext& context) {
  constexpr int kGates = 30;
  std::vector<float*> gates;
  for (int i = 0; i < kGates; ++i) {
    gates.push_back(static_cast<float*>(RandomDevice(s.experts * s.dim, DType::kF32, context)));
  }
  void* x = RandomDevice(tokens * s.dim, DType::kBF16, context);
  void* delta = RandomDevice(tokens * s.dim, DType::kBF16, context);
  void* from = RandomDevice(tokens * s.dim, DType::kF32, context);
  void* residual = RandomDevice(tokens * s.dim, DType::kF32, context);
  auto* weight = static_cast<float*>(RandomDevice(s.dim, DType::kF32, context));
  auto* bias = static_cast<float*>(RandomDevice(s.experts, DType::kF32, context));
  auto* ids = static_cast<int32_t*>(RandomDevice(tokens * s.top_k, DType::kF32, context));
  auto* weights = static_cast<float*>(RandomDevice(tokens * s.top_k, DType::kF32, context));
  const auto params = [&](int i) {
    return RouteParams{.x = x,
                       .gate = gates[static_cast<size_t>(i % kGates)],
                       .bias = s.sigmoid ? bias : nullptr,
                       .tokens = tokens,
                       .dim = s.dim,
                       .experts = s.experts,
                       .top_k = s.top_k,
                       .groups = s.sigmoid ? 8 : 1,
                       .limited_groups = s.sigmoid ? 4 : 1,
                       .score = s.sigmoid ? RouterScore::kSigmoid : RouterScore::kSoftmax,
                       .group_score = GroupScore::kTopTwoSum,
                       .normalise = s.sigmoid,
                       .ids = ids,
                       .weights = weights};
  };
  const RmsNormParams norm{.residual = residual, .from = from, .float_residual = true,
                           .delta = delta, .weight = weight, .out = x, .tokens = tokens,
                           .dim = s.dim, .x_stride = s.dim, .out_stride = s.dim};
  const int times = tokens > 512 ? 3 : 20;
  const double us =
      MedianMicros(times, [&](int i) { cuda::Route(params(i), context); }, context);
  const double pair =
      MedianMicros(times, [&](int i) { cuda::NormRoute(norm, params(i), context); }, context);
  const double bytes = 4.0 * s.experts * s.dim + 2.0 * tokens * s.dim;
  std::printf("%-7s route tokens %5d: %9.2f us %6.0f GB/s %6.1f TFLOP/s, %5.1f %% of read; with the "
              "norm before it %9.2f us\n",
              s.what, tokens, us, bytes / us / 1e3, 2.0 * tokens * s.experts * s.dim / us / 1e6,
              100 * bytes / us / 1e3 / ceilings.read_gbs, pair);
  std::fflush(stdout);
  for (float* gate : gates) cudaFree(gate);
  for (void* p : {x, delta, from, residual, static_cast<void*>(weight), static_cast<void*>(bias),
                  static_cast<void*>(ids), static_cast<void*>(weights)}) {
    cudaFree(p);
  }
}

void Run() {
  CudaContext& context = BenchContext(int64_t{1} << 30);
  const Ceilings ceilings = MeasureCeilings(context);
  std::printf("%s: read %.0f GB/s, bf16 GEMM %.0f TFLOP/s\n", ceilings.card.c_str(),
              ceilings.read_gbs, ceilings.bf16_tflops);
  for (const Shape& s : {k16B, k671B}) {
    for (const int tokens : {1, 2, 4, 8, 16, 32, 64, 256, 2048, 8192}) {
      BenchRoute(s, tokens, ceilings, context);
    }
  }
}

}  // namespace
}  // namespace hadal::bench

int main() { return hadal::bench::RunBench(hadal::bench::Run); }
