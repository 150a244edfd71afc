#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/cuda/bench/probes.h"
#include "kernels/cuda/rows/ops.h"
#include "kernels/cuda/sampling/ops.h"

// Times the ops that move rows: embedding, norm, sampling, against the card's read rate. Operands
// rotate through more memory than the cache holds.
namespace hadal::bench {
namespace {

constexpr int64_t kVocab = 102400;

class Bench {
 public:
  explicit Bench(CudaContext& context) : context_(context), ceilings_(MeasureCeilings(context)) {
    std::printf("%s: read %.0f GB/s, L2 %lld MB\n", ceilings_.card.c_str(), ceilings_.read_gbs,
                static_cast<long long>(ceilings_.l2_bytes >> 20));
  }

  // Norms alone, or everything.
  void Run(bool norms) {
    for (const int64_t dim : {2048, 7168}) {
      for (const int tokens : {1, 8, 64, 256, 2048, 8192}) Norm(tokens, dim);
    }
    if (norms) return;
    for (const int tokens : {1, 256, 8192}) Embed(tokens, 2048);
    for (const int rows : {1, 8, 64, 256, 512}) {
      SampleRows("greedy", rows, {});
      SampleRows("greedy, logprob", rows, {.logprobs = 0});
      SampleRows("drawn, flat", rows, {.temperature = 1});
      SampleRows("top_p 0.9, flat", rows, {.temperature = 1, .top_p = 0.9f});
      SampleRows("top_p 0.9, peaked", rows, {.temperature = 0.05f, .top_p = 0.9f});
      SampleRows("top_k 50, top_p 0.9", rows, {.temperature = 0.2f, .top_p = 0.9f, .top_k = 50});
      SampleRows("greedy, top 20", rows, {.logprobs = 20});
      TokenLogprobs(rows);
    }
  }

 private:
  void Print(const char* what, int rows, int64_t width, double bytes, double us) const {
    std::printf("%-20s %5d x %6lld: %8.2f us %6.0f GB/s, %5.1f %% of read\n", what, rows,
                static_cast<long long>(width), us, bytes / us / 1e3,
                100 * bytes / us / 1e3 / ceilings_.read_gbs);
  }

  void Norm(int tokens, int64_t dim) {
    const int64_t elements = tokens * dim;
    const int64_t sets = ColdSets(ceilings_, elements * 2, 64);
    void* x = RandomDevice(elements * sets, DType::kF32, context_);
    void* delta = RandomDevice(elements * sets, DType::kBF16, context_);
    void* out = RandomDevice(elements * sets, DType::kBF16, context_);
    void* weight = RandomDevice(dim, DType::kF32, context_);
    const auto at = [&](void* base, int i) {
      return static_cast<char*>(base) + i % sets * elements * 2;
    };
    const double us = MedianMicros(20, [&](int i) {
      cuda::RmsNorm({.residual = static_cast<float*>(x) + i % sets * elements,
                     .float_residual = true, .delta = at(delta, i),
                     .weight = static_cast<const float*>(weight), .out = at(out, i),
                     .tokens = tokens, .dim = dim, .x_stride = dim, .out_stride = dim}, context_);
    }, context_);
    Print("norm, delta", tokens, dim, 12.0 * static_cast<double>(elements), us);
    for (void* p : {x, delta, out, weight}) cudaFree(p);
  }

  void Embed(int tokens, int64_t dim) {
    void* table = RandomDevice(kVocab * dim, DType::kBF16, context_);
    void* out = RandomDevice(tokens * dim, DType::kBF16, context_);
    std::vector<int32_t> ids;
    for (int i = 0; i < tokens; ++i)
      ids.push_back(static_cast<int32_t>(i * int64_t{7919} % kVocab));
    int32_t* device_ids = Upload(ids);
    const double us = MedianMicros(20, [&](int) {
      cuda::Embed({.ids = device_ids, .tokens = tokens, .table = table,
                   .table_dtype = DType::kBF16, .vocab_end = kVocab, .dim = dim, .out = out},
                  context_);
    }, context_);
    Print("embed", tokens, dim, 4.0 * static_cast<double>(tokens * dim), us);
    for (void* p : {table, out, static_cast<void*>(device_ids)}) cudaFree(p);
  }

  void SampleRows(const char* what, int rows, const SamplingParams& s) {
    const int64_t elements = rows * kVocab;
    const int64_t sets = ColdSets(ceilings_, elements * 4, 64);
    auto* logits = static_cast<float*>(RandomDevice(elements * sets, DType::kF32, context_));
    SamplingParams* sampling = Upload(std::vector<SamplingParams>(static_cast<size_t>(rows), s));
    int32_t* positions = Upload(std::vector<int32_t>(static_cast<size_t>(rows), 17));
    SampledToken* out = Upload(std::vector<SampledToken>(static_cast<size_t>(rows)));
    TokenLogprob* top =
        Upload(std::vector<TokenLogprob>(static_cast<size_t>(rows * kMaxTopLogprobs)));
    const double us = MedianMicros(20, [&](int i) {
      cuda::Sample({.logits = logits + i % sets * elements, .rows = rows, .vocab = kVocab,
                    .vocab_limit = kVocab - 3, .sampling = sampling, .positions = positions,
                    .out = out, .top = top, .any_top = s.logprobs > 0,
                    .all_greedy = s.temperature == 0}, context_);
    }, context_);
    Print(what, rows, kVocab, 4.0 * static_cast<double>(elements), us);
    cudaFree(logits);
    cudaFree(sampling);
    cudaFree(positions);
    cudaFree(out);
    cudaFree(top);
  }

  void TokenLogprobs(int rows) {
    const int64_t elements = rows * kVocab;
    const int64_t sets = ColdSets(ceilings_, elements * 4, 64);
    auto* logits = static_cast<float*>(RandomDevice(elements * sets, DType::kF32, context_));
    int32_t* targets = Upload(std::vector<int32_t>(static_cast<size_t>(rows), 17));
    float* out = Upload(std::vector<float>(static_cast<size_t>(rows)));
    const double us = MedianMicros(20, [&](int i) {
      cuda::TokenLogprobs({.logits = logits + i % sets * elements, .targets = targets, .rows = rows,
                           .vocab = kVocab, .vocab_limit = kVocab, .out = out}, context_);
    }, context_);
    Print("token logprob", rows, kVocab, 4.0 * static_cast<double>(elements), us);
    cudaFree(logits);
    cudaFree(targets);
    cudaFree(out);
  }

  CudaContext& context_;
  const Ceilings ceilings_;
};

}  // namespace
}  // namespace hadal::bench

// With "norm" only the norms.
int main(int argc, char** argv) {
  const bool norms = argc > 1 && std::string(argv[1]) == "norm";
  return hadal::bench::RunBench(
      [=] { hadal::bench::Bench(hadal::bench::BenchContext(1 << 20)).Run(norms); });
}
