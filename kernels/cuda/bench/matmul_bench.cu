#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "kernels/cuda/bench/probes.h"
#include "kernels/cuda/matmul.h"

// Times products of the released models' shapes against what the card's memory and tensor cores
// allow. Weights rotate through more memory than the cache holds.
namespace hadal::bench {
namespace {

struct Shape {
  const char* what;
  int64_t n, k;
  int matrices = 1;
  bool float_out = false;
  bool many_rows = true;
};

constexpr Shape kShapes[] = {
    {"16B q+kv_a", 3648, 2048},
    {"16B o", 2048, 2048},
    {"16B dense w13", 21888, 2048},
    {"16B dense w2", 2048, 10944},
    {"16B shared w13", 5632, 2048},
    {"16B shared w2", 2048, 2816},
    {"16B head", 102400, 2048, 1, true, false},
    {"16B w_uk heads", 512, 128, 16},
    {"16B w_uv heads", 128, 512, 16},
    {"671B q_a+kv_a", 2112, 7168},
    {"671B/8 q_b", 3072, 1536},
    {"671B/8 o", 7168, 2048},
    {"671B/8 dense w13", 4608, 7168},
    {"671B/8 dense w2", 7168, 2304},
    {"671B/8 head", 16160, 7168, 1, true, false},
    {"671B w_uk heads", 512, 128, 128},
};

using Weights = std::vector<std::unique_ptr<CudaPackedWeight>>;

Weights MakeWeights(const Shape& s, DType dtype, const Ceilings& ceilings, CudaContext& context) {
  const int64_t bytes = s.matrices * s.n * s.k * DTypeSize(dtype);
  Weights weights;
  for (int i = ColdSets(ceilings, bytes, 100); i > 0; --i) {
    weights.push_back(RandomWeight(s.matrices, s.n, s.k, dtype, context));
  }
  return weights;
}

void BenchShape(const Shape& s, DType dtype, const Ceilings& ceilings, CudaContext& context) {
  const Weights weights = MakeWeights(s, dtype, ceilings, context);
  constexpr int kMaxRows = 4096;
  const int64_t in = s.matrices * s.k, out = s.matrices * s.n;
  const int rows = s.many_rows ? kMaxRows : 64;
  void* x = RandomDevice(rows * in, DType::kBF16, context);
  void* y = RandomDevice(rows * out, DType::kF32, context);
  for (const int m : {1, 8, 16, 32, 64, 256, 1024, 4096}) {
    if (m > rows || (s.matrices > 16 && m > 1024)) continue;
    const int calls = m > 64 ? std::max(2, 20 / (1 + m / 512)) : std::max<int>(20, weights.size());
    const double us = MedianMicros(
        calls,
        [&](int i) {
          cuda::RunProduct({.x = x,
                            .x_stride = in,
                            .x_matrix_stride = s.k,
                            .w = weights[static_cast<size_t>(i) % weights.size()].get(),
                            .y = y,
                            .y_stride = out,
                            .y_matrix_stride = s.n,
                            .float_out = s.float_out,
                            .m = m,
                            .matrices = s.matrices},
                           context);
        },
        context);
    const double bytes = static_cast<double>(out) * s.k * DTypeSize(dtype) + 2.0 * m * in +
                         (s.float_out ? 4.0 : 2.0) * m * out;
    const double flops = 2.0 * m * out * s.k;
    const double memory_us = bytes / ceilings.read_gbs / 1e3;
    const double math_us = flops / ceilings.bf16_tflops / 1e6;
    std::printf(
        "%-18s %3dx[%6lld,%6lld] %-7s m %4d: %8.2f us %6.0f GB/s %6.1f TFLOP/s, %5.1f %% of %s\n",
        s.what, s.matrices, static_cast<long long>(s.n), static_cast<long long>(s.k),
        DTypeName(dtype).data(), m, us, bytes / us / 1e3, flops / us / 1e6,
        100 * std::max(memory_us, math_us) / us, memory_us > math_us ? "read" : "bf16 GEMM");
  }
  cudaFree(x);
  cudaFree(y);
}

void Run() {
  CudaContext& context = BenchContext(int64_t{512} << 20);
  const Ceilings ceilings = MeasureCeilings(context);
  std::printf("%s: read %.0f GB/s, bf16 GEMM %.0f TFLOP/s, L2 %lld MB\n", ceilings.card.c_str(),
              ceilings.read_gbs, ceilings.bf16_tflops,
              static_cast<long long>(ceilings.l2_bytes >> 20));
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    for (const Shape& shape : kShapes) BenchShape(shape, dtype, ceilings, context);
  }
}

}  // namespace
}  // namespace hadal::bench

int main() { return hadal::bench::RunBench(hadal::bench::Run); }
