#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cuda/bench/probes.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/cuda_check.h"
#include "kernels/cuda/experts/moe.h"
#include "kernels/cuda/weights/packed_weight.h"

// Times experts of the released models' shapes against what the card's memory and
// tensor cores allow. Experts are chosen evenly at random; weights and choices rotate, so that the
// cache is cold.
namespace hadal::bench {
namespace {

using cuda::MoePath;

struct Shape {
  const char* what;
  int64_t dim, width, shared_width;
  int experts, local_experts, top_k;
};

constexpr Shape k16B = {"16B", 2048, 1408, 2816, 64, 64, 6};
constexpr Shape k671B = {"671B/8", 7168, 2048, 256, 256, 32, 8};

using Weight = std::unique_ptr<CudaPackedWeight>;

Weight MakeWeight(int count, int64_t n, int64_t k, DType dtype, CudaContext& context) {
  auto w = std::make_unique<CudaPackedWeight>();
  w->count = count;
  w->n = n;
  w->k = k;
  w->dtype = dtype;
  w->stride = k;
  w->data = RandomDevice(count * n * k, dtype, context);
  if (dtype == DType::kF8E4M3) {
    w->scale_rows = 128;
    w->scale_n = (n + 127) / 128;
    w->k_blocks = (k + 127) / 128;
    w->scale =
        static_cast<float*>(RandomDevice(count * w->scale_n * w->k_blocks, DType::kF32, context));
  }
  return w;
}

struct Layer {
  Layer(const Shape& s, DType dtype, CudaContext& c)
      : w13(MakeWeight(s.local_experts, 2 * s.width, s.dim, dtype, c)),
        w2(MakeWeight(s.local_experts, s.dim, s.width, dtype, c)),
        shared13(MakeWeight(1, 2 * s.shared_width, s.dim, dtype, c)),
        shared2(MakeWeight(1, s.dim, s.shared_width, dtype, c)) {}
  ~Layer() {
    for (const Weight* w : {&w13, &w2, &shared13, &shared2})
      cudaFree(const_cast<float*>((*w)->scale));
  }
  Weight w13, w2, shared13, shared2;
};

// Choices of `sets` steps; how many rows and distinct experts of this rank a step has in the mean.
struct Choices {
  Choices(const Shape& s, int tokens, int sets) {
    std::mt19937_64 rng(42);
    std::vector<int32_t> all(static_cast<size_t>(s.experts)), host;
    std::iota(all.begin(), all.end(), 0);
    for (int set = 0; set < sets; ++set) {
      std::vector<bool> touched(static_cast<size_t>(s.local_experts));
      for (int t = 0; t < tokens; ++t) {
        for (int j = 0; j < s.top_k; ++j) {
          std::swap(all[static_cast<size_t>(j)],
                    all[static_cast<size_t>(j) + rng() % static_cast<size_t>(s.experts - j)]);
          const int32_t id = all[static_cast<size_t>(j)];
          host.push_back(id);
          if (id >= s.local_experts) continue;
          rows += 1.0 / sets;
          touched[static_cast<size_t>(id)] = true;
        }
      }
      experts += static_cast<double>(std::count(touched.begin(), touched.end(), true)) / sets;
    }
    HADAL_CUDA(cudaMalloc(&ids, host.size() * 4));
    HADAL_CUDA(cudaMemcpy(ids, host.data(), host.size() * 4, cudaMemcpyHostToDevice));
    std::vector<int32_t> index(static_cast<size_t>(s.experts), -1);
    std::iota(index.begin(), index.begin() + s.local_experts, 0);
    HADAL_CUDA(cudaMalloc(&local, index.size() * 4));
    HADAL_CUDA(cudaMemcpy(local, index.data(), index.size() * 4, cudaMemcpyHostToDevice));
  }
  ~Choices() {
    cudaFree(ids);
    cudaFree(local);
  }
  int32_t* ids = nullptr;
  int32_t* local = nullptr;
  double rows = 0, experts = 0;
};

void BenchMoe(const Shape& s, DType dtype, const std::vector<std::unique_ptr<Layer>>& layers,
              int tokens, MoePath path, const char* path_name, const Ceilings& ceilings,
              CudaContext& context) {
  const int calls = tokens > 2048 ? 6 : 20;
  const Choices choices(s, tokens, calls);
  void* x = RandomDevice(tokens * s.dim, DType::kBF16, context);
  void* out = RandomDevice(tokens * s.dim, DType::kBF16, context);
  auto* weights = static_cast<float*>(RandomDevice(tokens * s.top_k, DType::kF32, context));
  const auto params = [&](int i) {
    const Layer& l = *layers[static_cast<size_t>(i) % layers.size()];
    return MoeParams{
        .x = x,
        .ids = choices.ids + int64_t{i} * tokens * s.top_k,
        .weights = weights,
        .local_index = choices.local,
        .w13 = l.w13.get(),
        .w2 = l.w2.get(),
        .shared = {.w13 = l.shared13.get(), .w2 = l.shared2.get(), .width = s.shared_width},
        .out = out,
        .tokens = tokens,
        .top_k = s.top_k,
        .experts = s.experts,
        .dim = s.dim,
        .width = s.width};
  };
  if (cuda::MoePathFits(params(0), path, context)) {
    const double us = MedianMicros(
        calls, [&](int i) { cuda::RunMoe(params(i), path, context); }, context);
    const double elements = 3.0 * s.dim * (choices.experts * s.width + s.shared_width);
    const double bytes = elements * DTypeSize(dtype);
    const double flops =
        6.0 * s.dim * (choices.rows * s.width + double{1} * tokens * s.shared_width);
    const double memory_us = bytes / ceilings.read_gbs / 1e3;
    const double math_us = flops / ceilings.bf16_tflops / 1e6;
    std::printf(
        "%-7s %-7s %-7s tokens %5d, %4.0f experts: %9.2f us %6.0f GB/s %6.1f TFLOP/s, %5.1f %% of "
        "%s\n",
        s.what, DTypeName(dtype).data(), path_name, tokens, choices.experts, us, bytes / us / 1e3,
        flops / us / 1e6, 100 * std::max(memory_us, math_us) / us,
        memory_us > math_us ? "read" : "bf16 GEMM");
    std::fflush(stdout);
  }
  cudaFree(x);
  cudaFree(out);
  cudaFree(weights);
}

void BenchModel(const Shape& s, DType dtype, const Ceilings& ceilings, CudaContext& context) {
  std::vector<std::unique_ptr<Layer>> layers;
  for (int i = 0; i < 3; ++i) layers.push_back(std::make_unique<Layer>(s, dtype, context));
  for (const int tokens : {1, 2, 4, 8}) {
    BenchMoe(s, dtype, layers, tokens, MoePath::kFew, "few", ceilings, context);
  }
  for (const int tokens : {8, 16, 32, 64, 128, 256, 512}) {
    BenchMoe(s, dtype, layers, tokens, MoePath::kStream, "stream", ceilings, context);
  }
  for (const int tokens : {2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192}) {
    BenchMoe(s, dtype, layers, tokens, MoePath::kTile, "tile", ceilings, context);
  }
}

void Run() {
  CudaContext& context = BenchContext(int64_t{3} << 30);
  const Ceilings ceilings = MeasureCeilings(context);
  std::printf("%s: read %.0f GB/s, bf16 GEMM %.0f TFLOP/s\n", ceilings.card.c_str(),
              ceilings.read_gbs, ceilings.bf16_tflops);
  BenchModel(k16B, DType::kBF16, ceilings, context);
  BenchModel(k16B, DType::kF8E4M3, ceilings, context);
  BenchModel(k671B, DType::kF8E4M3, ceilings, context);
}

}  // namespace
}  // namespace hadal::bench

int main() { return hadal::bench::RunBench(hadal::bench::Run); }
