#include <algorithm>
#include <cmath>
#include <limits>

#include "common/philox.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector.h"

namespace hadal {
namespace {

struct Candidate {
  float logit;
  int32_t id;
};
// Best first, equals by id.
bool Better(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// One row of logits; `n` ids may be drawn.
class Row {
 public:
  Row(const float* logits, int64_t n, const VectorKernels& kernels, ScratchArena& arena)
      : logits_(logits), n_(n), kernels_(kernels), arena_(arena) {
    block_max_ = arena.Allocate<float>((n + kMaxBlock - 1) / kMaxBlock);
    non_finite_ = kernels.block_max(logits, n, block_max_);
    for (int64_t b = 0; b * kMaxBlock < n; ++b) {
      if (block_max_[b] > max_) {
        max_ = block_max_[b];
        max_block_ = b;
      }
    }
    non_finite_ |= !std::isfinite(max_);
  }

  bool non_finite() const { return non_finite_; }

  float LogSumExp() const {
    return max_ + static_cast<float>(std::log(kernels_.exp_sum(logits_, n_, max_, 1.0f, nullptr)));
  }

  int32_t Greedy() const {
    int64_t i = max_block_ * kMaxBlock;
    while (logits_[i] != max_) ++i;
    return static_cast<int32_t>(i);
  }

  int32_t Draw(const SamplingParams& s, double uniform) const {
    float* w = arena_.Allocate<float>(n_);
    // Finite also for the smallest temperature: the difference that it multiplies may be zero.
    const float factor = std::min(1.0f / s.temperature, std::numeric_limits<float>::max());
    const double total = kernels_.exp_sum(logits_, n_, max_, factor, w);
    if (s.top_k == 0 && s.top_p >= 1 && s.min_p == 0) return DrawInOrder(w, total, uniform);
    int64_t count = 0;
    Candidate* candidates = Gather(w, s, total, &count);
    count = Filter(s, total, w, candidates, count);
    double kept = 0;
    for (int64_t i = 0; i < count; ++i) kept += w[candidates[i].id];
    double left = uniform * kept;
    for (int64_t i = 0; i < count; ++i) {
      left -= w[candidates[i].id];
      if (left < 0) return candidates[i].id;
    }
    return candidates[count - 1].id;
  }

  // The `count` most likely, best first.
  void Top(int count, float log_sum_exp, TokenLogprob* out) const {
    std::vector<Candidate> best;  // a heap, the worst on top
    for (int64_t b = 0; b * kMaxBlock < n_; ++b) {
      const bool full = static_cast<int>(best.size()) == count;
      if (full && block_max_[b] <= best.front().logit) continue;  // a later id loses a tie
      const int64_t end = std::min((b + 1) * kMaxBlock, n_);
      for (int64_t i = b * kMaxBlock; i < end; ++i) {
        Offer({logits_[i], static_cast<int32_t>(i)}, count, &best);
      }
    }
    std::sort_heap(best.begin(), best.end(), Better);
    for (const Candidate& c : best) *out++ = {c.id, c.logit - log_sum_exp};
  }

 private:
  static void Offer(const Candidate& candidate, int count, std::vector<Candidate>* heap) {
    if (static_cast<int>(heap->size()) == count) {
      if (!Better(candidate, heap->front())) return;
      std::pop_heap(heap->begin(), heap->end(), Better);
      heap->pop_back();
    }
    heap->push_back(candidate);
    std::push_heap(heap->begin(), heap->end(), Better);
  }

  int32_t DrawInOrder(const float* w, double total, double uniform) const {
    double left = uniform * total;
    for (int64_t i = 0; i < n_; ++i) {
      left -= w[i];
      if (left < 0) return static_cast<int32_t>(i);
    }
    // `total` was rounded differently. What is missing, some 1e-7, goes to the likeliest id.
    return Greedy();
  }

  // Ids that may survive the filters, unordered: those above a weight below which nothing can.
  Candidate* Gather(const float* w, const SamplingParams& s, double total, int64_t* count) const {
    auto* out = arena_.Allocate<Candidate>(n_);
    // min_p comes last: what it drops still counts for top_p.
    const float floor = s.top_p < 1 ? 0.0f : s.min_p;
    for (float cut : {1e-2f, 1e-4f, 1e-7f, 0.0f}) {
      const float lowest = std::max(cut, floor);
      double mass = 0;
      *count = 0;
      for (int64_t i = 0; i < n_; ++i) {
        if (w[i] < lowest || w[i] == 0) continue;
        out[(*count)++] = {logits_[i], static_cast<int32_t>(i)};
        mass += w[i];
      }
      // What was left out weighs less than each of these, so the best ones are all here.
      const bool enough_ids = s.top_k > 0 && *count >= s.top_k;
      const bool enough_mass = s.top_k == 0 && s.top_p < 1 && mass >= s.top_p * total;
      if (enough_ids || enough_mass || lowest == floor) break;
    }
    return out;
  }

  // Sorts and keeps what top_k, then top_p of the rest, then min_p allow: how many.
  static int64_t Filter(const SamplingParams& s, double total, const float* w,
                        Candidate* candidates, int64_t count) {
    if (s.top_k > 0 && s.top_k < count) {
      std::nth_element(candidates, candidates + s.top_k, candidates + count, Better);
      count = s.top_k;
    }
    std::sort(candidates, candidates + count, Better);
    if (s.top_p < 1) {
      if (s.top_k > 0) {
        total = 0;
        for (int64_t i = 0; i < count; ++i) total += w[candidates[i].id];
      }
      double mass = 0;
      int64_t kept = 0;
      while (kept < count && mass < s.top_p * total) mass += w[candidates[kept++].id];
      count = std::max<int64_t>(kept, 1);
    }
    while (count > 1 && w[candidates[count - 1].id] < s.min_p) --count;
    return count;
  }

  const float* const logits_;
  const int64_t n_;
  const VectorKernels& kernels_;
  ScratchArena& arena_;
  float* block_max_;
  float max_ = -std::numeric_limits<float>::infinity();
  int64_t max_block_ = 0;
  bool non_finite_;
};

void SampleRow(const Row& row, const SamplingParams& s, int32_t position, const float* logits,
               SampledToken* result, TokenLogprob* top) {
  *result = {.token = 0, .logprob = 0, .non_finite = row.non_finite() ? 1 : 0};
  if (row.non_finite()) return;
  result->token = s.temperature == 0
                      ? row.Greedy()
                      : row.Draw(s, UniformDraw(s.seed, static_cast<uint64_t>(position)));
  if (s.logprobs < 0) return;
  const float log_sum_exp = row.LogSumExp();
  result->logprob = logits[result->token] - log_sum_exp;
  if (s.logprobs > 0) row.Top(std::min(s.logprobs, kMaxTopLogprobs), log_sum_exp, top);
}

}  // namespace

void Sample(const SampleParams& p, CpuContext& context) {
  const VectorKernels& kernels = VectorKernelsFor(context.isa);
  context.pool->ParallelFor(p.rows, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t r = begin; r < end; ++r) {
      ScratchArena& arena = context.scratch[static_cast<size_t>(thread)];
      ScratchArena::Scope scope(arena);
      const float* logits = p.logits + r * p.vocab;
      SampleRow(Row(logits, p.vocab_limit, kernels, arena), p.sampling[r], p.positions[r], logits,
                &p.out[r], p.top + r * kMaxTopLogprobs);
    }
  });
}

void StoreTokens(const StoreTokensParams& p, CpuContext&) {
  for (int i = 0; i < p.rows; ++i) {
    if (p.slots[i] >= 0) p.last_tokens[p.slots[i]] = p.tokens[i].token;
  }
}

void TokenLogprobs(const TokenLogprobParams& p, CpuContext& context) {
  const VectorKernels& kernels = VectorKernelsFor(context.isa);
  context.pool->ParallelFor(p.rows, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t r = begin; r < end; ++r) {
      ScratchArena& arena = context.scratch[static_cast<size_t>(thread)];
      ScratchArena::Scope scope(arena);
      const float* logits = p.logits + r * p.vocab;
      const Row row(logits, p.vocab_limit, kernels, arena);
      p.out[r] = row.non_finite() ? std::numeric_limits<float>::quiet_NaN()
                                  : logits[p.targets[r]] - row.LogSumExp();
    }
  });
}

}  // namespace hadal
