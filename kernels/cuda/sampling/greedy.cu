#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/sampling/greedy.h"
#include "kernels/cuda/sampling/row_scan.cuh"

namespace hadal::cuda {
namespace {

// Rows are read once, so memory decides: four CTAs, 32 KiB of loads each, keep a multiprocessor
// busy.
constexpr int kCtasPerSm = 4;

template <int kCtas>
__global__ void HADAL_ROW_CTAS(kCtas) __launch_bounds__(kRowThreads, kCtasPerSm)
    GreedyKernel(SampleParams p) {
  using Group = RowGroup<kCtas>;
  __shared__ ReduceSpace space;
  const int r = Group::row();
  WaitForPrevious();
  if (p.positions[r] < 0) return;
  const float* row = p.logits + r * p.vocab;
  const bool with_sum = p.sampling[r].logprobs >= 0;
  const RowSummary s = Summarise<kCtas>(row, static_cast<int>(p.vocab_limit), with_sum, space);
  if (Group::rank() == 0 && threadIdx.x == 0) {
    // The chosen logit is the largest.
    p.out[r] = s.bad() ? SampledToken{0, 0, 1} : SampledToken{s.id, with_sum ? -logf(s.sum) : 0, 0};
  }
  Group::Sync();
}

template <int kCtas>
__global__ void HADAL_ROW_CTAS(kCtas) __launch_bounds__(kRowThreads, kCtasPerSm)
    TokenLogprobKernel(TokenLogprobParams p) {
  using Group = RowGroup<kCtas>;
  __shared__ ReduceSpace space;
  const int r = Group::row();
  WaitForPrevious();
  const int target = p.targets[r];
  if (target < 0) return;
  const float* row = p.logits + r * p.vocab;
  const RowSummary s = Summarise<kCtas>(row, static_cast<int>(p.vocab_limit), true, space);
  if (Group::rank() == 0 && threadIdx.x == 0) {
    p.out[r] = s.bad() ? NAN : row[target] - s.LogSumExp();
  }
  Group::Sync();
}

}  // namespace

void SampleGreedy(const SampleParams& p, CudaContext& context) {
  WithRowCtas(p.rows, kCtasPerSm, context, [&]<int kCtas>() {
    Launch(GreedyKernel<kCtas>, dim3(p.rows * kCtas), dim3(kRowThreads), 0, context, p);
  });
  HADAL_CUDA_LAUNCHED();
}

void TokenLogprobs(const TokenLogprobParams& p, CudaContext& context) {
  if (p.rows == 0) return;
  WithRowCtas(p.rows, kCtasPerSm, context, [&]<int kCtas>() {
    Launch(TokenLogprobKernel<kCtas>, dim3(p.rows * kCtas), dim3(kRowThreads), 0, context, p);
  });
  HADAL_CUDA_LAUNCHED();
}

}  // namespace hadal::cuda
