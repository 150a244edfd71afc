#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/bench/probes.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/products/matmul.h"

// Times products of the released models' shapes against what the card's memory and tensor cores
// allow. Weights rotate through more memory than the cache holds.
namespace hadal::bench {
namespace {

struct Shape {
  const char* what;
  int64_t n, k;
  int matrices = 1;
  bool float_out = false;
};

constexpr Shape kShapes[] = {
    {"16B q+kv_a", 3648, 2048},          {"16B o", 2048, 2048},
    {"16B dense w13", 21888, 2048},      {"16B dense w2", 2048, 10944},
    {"16B shared w13", 5632, 2048},      {"16B shared w2", 2048, 2816},
    {"16B head", 102400, 2048, 1, true}, {"671B o", 7168, 16384},
    {"671B q_b", 24576, 1536},           {"671B o of 8", 7168, 2048},
    {"671B q_a+kv_a", 2112, 7168},       {"671B q_b of 8", 3072, 1536},
    {"16B w_uk heads", 512, 128, 16},    {"16B w_uv heads", 128, 512, 16},
    {"671B w_uk heads", 512, 128, 128},  {"671B w_uv heads", 128, 512, 128},
};

using Weights = std::vector<std::unique_ptr<CudaPackedWeight>>;

Weights MakeWeights(const Shape& s, DType dtype, const Ceilings& ceilings, CudaContext& context) {
  const int64_t bytes = s.matrices * s.n * s.k * DTypeSize(dtype);
  const int64_t sets = std::clamp<int64_t>(5 * ceilings.l2_bytes / 2 / bytes + 1, 2, 100);
  Weights weights;
  for (int64_t i = 0; i < sets; ++i) {
    auto w = std::make_unique<CudaPackedWeight>();
    w->count = s.matrices;
    w->n = s.n;
    w->k = s.k;
    w->dtype = dtype;
    w->stride = s.k;
    w->data = RandomDevice(s.matrices * s.n * s.k, dtype, context);
    if (dtype == DType::kF8E4M3) {
      w->scale_rows = 128;
      w->scale_n = (s.n + 127) / 128;
      w->k_blocks = (s.k + 127) / 128;
      w->scale = static_cast<float*>(
          RandomDevice(s.matrices * w->scale_n * w->k_blocks, DType::kF32, context));
    }
    weights.push_back(std::move(w));
  }
  return weights;
}

void FreeWeights(const Weights& weights) {
  for (const auto& w : weights) cudaFree(const_cast<float*>(w->scale));
}

struct Variant {
  std::string name;
  std::function<bool(const cuda::Product&, CudaContext&)> run;
};

std::vector<Variant> VariantsOf(const cuda::Product& p, const CudaContext& context) {
  std::vector<Variant> variants = {
      {"chosen",
       [](const cuda::Product& q, CudaContext& c) { return cuda::RunProduct(q, c), true; }},
      {"skinny", cuda::MatMulSkinny},
      {"cublas", p.w->dtype == DType::kBF16 ? cuda::MatMulCublas : cuda::MatMulCublasF8}};
  for (const cuda::HeldPlan& plan : cuda::kHeldPlans) {
    variants.push_back(
        {"held " + std::to_string(64 * plan.units) + (plan.codes ? "c" : "") + "/" +
             std::to_string(plan.warps),
         [plan](const cuda::Product& q, CudaContext& c) { return cuda::MatMulHeld(q, plan, c); }});
  }
  for (const int rows : {64, 128}) {
    for (int splits = 1; splits <= rows / 16; splits *= 2) {
      const int64_t blocks = (p.w->n + rows - 1) / rows * p.matrices * splits;
      const int64_t steps = p.w->k * DTypeSize(p.w->dtype) * rows / (128 * 128);
      if (splits > steps || blocks * 3 < context.sm_count) continue;
      if (splits > 1 && blocks > 4 * context.sm_count) continue;
      const cuda::FewPlan plan{rows, splits};
      variants.push_back({std::to_string(rows) + "/" + std::to_string(splits),
                          [plan](const cuda::Product& q, CudaContext& c) {
                            return cuda::MatMulFew(q, plan, c);
                          }});
    }
  }
  return variants;
}

void BenchShape(const Shape& s, DType dtype, const Ceilings& ceilings, CudaContext& context) {
  const Weights weights = MakeWeights(s, dtype, ceilings, context);
  constexpr int kRows = 256;
  const int64_t in = s.matrices * s.k, out = s.matrices * s.n;
  void* x = RandomDevice(kRows * in, DType::kBF16, context);
  void* y = RandomDevice(kRows * out, DType::kF32, context);
  for (const int m : {1, 4, 8, 32, 64, 128, 256}) {
    const double bytes = static_cast<double>(out) * s.k * DTypeSize(dtype) + 2.0 * m * in +
                         (s.float_out ? 4.0 : 2.0) * m * out;
    const double memory_us = bytes / ceilings.read_gbs / 1e3;
    std::printf("%-15s %2dx[%6lld,%5lld] %-7s m %3d floor %6.2f:", s.what, s.matrices,
                static_cast<long long>(s.n), static_cast<long long>(s.k), DTypeName(dtype).data(),
                m, memory_us);
    cuda::Product product{.x = x,
                          .x_stride = in,
                          .x_matrix_stride = s.k,
                          .w = weights[0].get(),
                          .y = y,
                          .y_stride = out,
                          .y_matrix_stride = s.n,
                          .float_out = s.float_out,
                          .m = m,
                          .matrices = s.matrices};
    for (const Variant& variant : VariantsOf(product, context)) {
      if (!variant.run(product, context)) continue;
      const int calls = std::max<int>(20, static_cast<int>(weights.size()));
      const double us = MedianMicros(
          calls,
          [&](int i) {
            product.w = weights[static_cast<size_t>(i) % weights.size()].get();
            variant.run(product, context);
          },
          context);
      std::printf(" %s %.2f", variant.name.c_str(), us);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
  FreeWeights(weights);
  cudaFree(x);
  cudaFree(y);
}

void Run(const std::vector<std::string>& only) {
  CudaContext& context = BenchContext(int64_t{512} << 20);
  const Ceilings ceilings = MeasureCeilings(context);
  std::printf("%s: read %.0f GB/s, bf16 GEMM %.0f TFLOP/s, L2 %lld MB\n", ceilings.card.c_str(),
              ceilings.read_gbs, ceilings.bf16_tflops,
              static_cast<long long>(ceilings.l2_bytes >> 20));
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    for (const Shape& shape : kShapes) {
      const auto begins = [&](const std::string& name) {
        return std::string(shape.what).starts_with(name);
      };
      if (only.empty() || std::any_of(only.begin(), only.end(), begins)) {
        BenchShape(shape, dtype, ceilings, context);
      }
    }
  }
}

}  // namespace
}  // namespace hadal::bench

// The shapes whose names begin with one of the arguments, or all.
int main(int argc, char** argv) {
  const std::vector<std::string> only(argv + 1, argv + argc);
  return hadal::bench::RunBench([&] { hadal::bench::Run(only); });
}
