#include "common/philox.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/sampling/greedy.h"
#include "kernels/cuda/sampling/ops.h"
#include "kernels/cuda/sampling/row_search.cuh"

namespace hadal::cuda {
namespace {

constexpr int kCtasPerSm = 2;

struct Shared {
  SearchSpace search;
  int top_count;
  struct Token {
    float logit;
    int id;
  } top[kMaxTopLogprobs];
};

template <int kCtas>
__device__ int Draw(KeptTokens tokens, const SamplingParams& s, double uniform,
                    SearchSpace& space) {
  // Any filter, even one that keeps all tokens, makes the draw go from the best token down.
  if (s.top_k == 0 && s.top_p >= 1 && s.min_p == 0) {
    return DrawInOrder<kCtas>(tokens, uniform, space);
  }
  if (s.top_k > 0 && s.top_k < tokens.n) {
    const Goal last{.count = true, .target = static_cast<uint64_t>(s.top_k) - 1};
    tokens.CutAfter(FindPlace<kCtas>(tokens, last, space));
  }
  if (s.top_p < 1 && s.min_p == 0) {
    return IdOf(FindWithinTopP<kCtas>(tokens, s.top_p, uniform, space));
  }
  if (s.top_p < 1) {
    const Goal enough{.fraction = s.top_p, .reach = true};
    tokens.CutAfter(FindPlace<kCtas>(tokens, enough, space));
  }
  return IdOf(FindPlace<kCtas>(tokens, {.fraction = uniform, .min_weight = s.min_p}, space));
}

// Writes the `count` best; nothing is cut.
template <int kCtas>
__device__ void WriteTop(KeptTokens tokens, int count, float log_sum_exp, TokenLogprob* out,
                         Shared& shared) {
  using Group = RowGroup<kCtas>;
  if (threadIdx.x == 0) shared.top_count = 0;
  const Goal last{.count = true, .target = static_cast<uint64_t>(count) - 1};
  tokens.CutAfter(FindPlace<kCtas>(tokens, last, shared.search));
  ForShare<kCtas>(tokens.logits, tokens.n, [&](float x, int id) {
    if (!tokens.Has(x, id)) return;
    const int at = atomicAdd(Group::At(&shared.top_count, 0), 1);
    Group::At(shared.top, 0)[at] = {x, id};
  });
  Group::Sync();
  if (Group::rank() != 0 || threadIdx.x >= count) return;
  const Shared::Token own = shared.top[threadIdx.x];
  int better = 0;
  for (int i = 0; i < count; ++i) {
    const Shared::Token other = shared.top[i];
    better += other.logit > own.logit || (other.logit == own.logit && other.id < own.id);
  }
  out[better] = {own.id, own.logit - log_sum_exp};
}

template <int kCtas>
__global__ void HADAL_ROW_CTAS(kCtas) __launch_bounds__(kRowThreads, kCtasPerSm)
    SampleKernel(SampleParams p) {
  using Group = RowGroup<kCtas>;
  __shared__ Shared shared;
  const int r = Group::row();
  WaitForPrevious();
  if (p.positions[r] < 0) return;
  if (threadIdx.x == 0) shared.search.listed = 0;
  const SamplingParams s = p.sampling[r];
  const float* logits = p.logits + r * p.vocab;
  const int n = static_cast<int>(p.vocab_limit);
  const RowSummary summary = Summarise<kCtas>(logits, n, s.logprobs >= 0, shared.search.reduce);
  SampledToken drawn;
  drawn.non_finite = summary.bad();
  if (!summary.bad()) {
    // Finite also for the smallest temperature: the difference that it multiplies may be zero.
    const float factor = s.temperature == 0 ? 1.0f : fminf(1.0f / s.temperature, 3.40282347e38f);
    const KeptTokens all{logits, n, summary.max, factor};
    const float log_sum_exp = summary.LogSumExp();
    drawn.token = summary.id;
    if (s.temperature != 0) {
      const double uniform = UniformDraw(s.seed, static_cast<uint64_t>(p.positions[r]));
      drawn.token = Draw<kCtas>(all, s, uniform, shared.search);
    }
    if (s.logprobs >= 0) drawn.logprob = logits[drawn.token] - log_sum_exp;
    const int top = min(min(s.logprobs, kMaxTopLogprobs), n);
    if (top > 0) WriteTop<kCtas>(all, top, log_sum_exp, p.top + r * kMaxTopLogprobs, shared);
  }
  if (Group::rank() == 0 && threadIdx.x == 0) p.out[r] = drawn;
  Group::Sync();
}

}  // namespace

void Sample(const SampleParams& p, CudaContext& context) {
  if (p.rows == 0) return;
  if (p.all_greedy && !p.any_top) return SampleGreedy(p, context);
  HADAL_CHECK(p.vocab_limit <= kMaxVocab, "{} tokens", p.vocab_limit);
  WithRowCtas(p.rows, kCtasPerSm, context, [&]<int kCtas>() {
    Launch(SampleKernel<kCtas>, dim3(p.rows * kCtas), dim3(kRowThreads), 0, context, p);
  });
  HADAL_CUDA_LAUNCHED();
}

int64_t SampleScratchBytes(const OpLimits&) { return 0; }

}  // namespace hadal::cuda
