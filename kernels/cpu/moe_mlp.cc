#include <algorithm>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/ops.h"

namespace hadal {
namespace {

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

}  // namespace

void MoeMlp(const MoeMlpParams& p, CpuContext& context) {
  if (p.rows == 0) return;
  const GemmKernels& kernels = *context.gemm;
  ScratchArena::Scope scope(context.shared);
  ScratchArena& arena = context.shared;
  auto* experts = arena.Allocate<ExpertRows>(p.experts);
  auto* jobs = arena.Allocate<GemmJob>(p.experts);
  float* gate_up = arena.Allocate<float>(p.rows * 2 * p.width);
  int count = 0;
  for (int e = 0; e < p.experts; ++e) {
    const int32_t begin = p.expert_offsets[e], rows = p.expert_offsets[e + 1] - begin;
    if (rows == 0) continue;
    const auto* w13 = p.w13[e];
    const auto* w2 = p.w2[e];
    experts[count] = {w13, w2, begin, rows, AllocateGemmRows(*w13, kernels, rows, arena),
                      AllocateGemmRows(*w2, kernels, rows, arena)};
    jobs[count] = {w13, experts[count].x, rows, gate_up + begin * 2 * p.width, 2 * p.width};
    ++count;
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

}  // namespace hadal
