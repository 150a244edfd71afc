#include <algorithm>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/ops.h"

namespace hadal {
namespace {

constexpr int kWholeRows = 8;              // per expert, on average
constexpr int kWholeExpertsPerThread = 8;

// One expert's share of the rows.
struct ExpertRows {
  const CpuPackedWeight* w13 = nullptr;
  const CpuPackedWeight* w2 = nullptr;
  int32_t begin = 0;
  int32_t rows = 0;
  GemmRows x;      // gathered inputs of w13
  GemmRows hidden; // inputs of w2
};

const ExpertRows& ExpertOf(const ExpertRows* experts, int count, int64_t row) {
  const ExpertRows* after = std::upper_bound(
      experts, experts + count, row, [](int64_t r, const ExpertRows& e) { return r < e.begin; });
  return *(after - 1);
}

// Whether threads take experts as they are: so many that all end together, none too large for
// that, and with so many rows that what lies between the products is worth a cache.
bool TakeWhole(const ExpertRows* experts, int count, const MoeMlpParams& p, int threads) {
  if (p.rows < kWholeRows * count || count < kWholeExpertsPerThread * threads) return false;
  return std::all_of(experts, experts + count, [&](const ExpertRows& e) {
    return int64_t{e.rows} * 2 * threads <= p.rows;
  });
}

// Both products of an expert on the calling thread.
void RunWhole(const ExpertRows& e, const MoeMlpParams& p, CpuContext& context, int thread) {
  const GemmKernels& kernels = *context.gemm;
  ScratchArena& arena = context.scratch[static_cast<size_t>(thread)];
  ScratchArena::Scope scope(arena);
  const GemmRows x = AllocateGemmRows(*e.w13, kernels, e.rows, arena);
  const GemmRows hidden = AllocateGemmRows(*e.w2, kernels, e.rows, arena);
  float* gate_up = arena.Allocate<float>(e.rows * 2 * p.width);
  for (int r = 0; r < e.rows; ++r) {
    ConvertGemmRow(*e.w13, kernels, p.x + p.row_token[e.begin + r] * p.dim, x.row(r));
  }
  RunGemmSerial({e.w13, x, e.rows, gate_up, 2 * p.width}, kernels, arena);
  for (int r = 0; r < e.rows; ++r) {
    SiluGemmRow(*e.w2, gate_up + r * 2 * p.width, hidden.row(r), context, thread);
  }
  RunGemmSerial({e.w2, hidden, e.rows, p.row_out + e.begin * p.dim, p.dim}, kernels, arena);
}

// Both products of all experts, one after the other, each spread over all threads.
void RunTogether(ExpertRows* experts, int count, const MoeMlpParams& p, CpuContext& context) {
  const GemmKernels& kernels = *context.gemm;
  ScratchArena& arena = context.shared;
  auto* jobs = arena.Allocate<GemmJob>(count);
  float* gate_up = arena.Allocate<float>(p.rows * 2 * p.width);
  for (int i = 0; i < count; ++i) {
    ExpertRows& e = experts[i];
    e.x = AllocateGemmRows(*e.w13, kernels, e.rows, arena);
    e.hidden = AllocateGemmRows(*e.w2, kernels, e.rows, arena);
    jobs[i] = {e.w13, e.x, e.rows, gate_up + e.begin * 2 * p.width, 2 * p.width};
  }

  context.pool->ParallelFor(p.rows, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const ExpertRows& e = ExpertOf(experts, count, r);
      ConvertGemmRow(*e.w13, kernels, p.x + p.row_token[r] * p.dim, e.x.row(r - e.begin));
    }
  });
  RunGemmJobs(jobs, count, context);

  context.pool->ParallelFor(p.rows, 4, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t r = begin; r < end; ++r) {
      const ExpertRows& e = ExpertOf(experts, count, r);
      SiluGemmRow(*e.w2, gate_up + r * 2 * p.width, e.hidden.row(r - e.begin), context, thread);
    }
  });
  for (int i = 0; i < count; ++i) {
    const ExpertRows& e = experts[i];
    jobs[i] = {e.w2, e.hidden, e.rows, p.row_out + e.begin * p.dim, p.dim};
  }
  RunGemmJobs(jobs, count, context);
}

}  // namespace

void MoeMlp(const MoeMlpParams& p, CpuContext& context) {
  if (p.rows == 0) return;
  ScratchArena::Scope scope(context.shared);
  auto* experts = context.shared.Allocate<ExpertRows>(p.experts);
  int count = 0;
  for (int e = 0; e < p.experts; ++e) {
    const int32_t begin = p.expert_offsets[e], rows = p.expert_offsets[e + 1] - begin;
    if (rows > 0) experts[count++] = {p.w13[e], p.w2[e], begin, rows, {}, {}};
  }
  if (!TakeWhole(experts, count, p, context.pool->size())) {
    return RunTogether(experts, count, p, context);
  }
  // The largest first, so that the last ones are short.
  std::sort(experts, experts + count, [](const ExpertRows& a, const ExpertRows& b) {
    return a.rows != b.rows ? a.rows > b.rows : a.begin < b.begin;
  });
  context.pool->ParallelFor(count, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) RunWhole(experts[i], p, context, thread);
  });
}

}  // namespace hadal
