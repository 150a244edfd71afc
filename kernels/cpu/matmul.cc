#include <algorithm>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/ops.h"

namespace hadal {
namespace {

// Elements whose conversion is worth waking another thread.
constexpr int64_t kConvertGrain = 16 * 1024;

int64_t ConvertRowsGrain(int64_t k) {
  return std::max<int64_t>(kConvertGrain / std::max<int64_t>(k, 1), 1);
}

}  // namespace

void MatMul(const MatMulParams& p, CpuContext& context) {
  if (p.m == 0) return;
  const CpuPackedWeight& w = *CpuMatrices(p.w)[0];
  const GemmKernels& kernels = *context.gemm;
  const auto* x = static_cast<const float*>(p.x);
  ScratchArena::Scope scope(context.shared);
  const GemmRows rows = AllocateGemmRows(w, kernels, p.m, context.shared);
  context.pool->ParallelFor(p.m, ConvertRowsGrain(w.k), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      ConvertGemmRow(w, kernels, x + i * p.x_stride, rows.row(i));
    }
  });
  const GemmJob job{&w, rows, p.m, static_cast<float*>(p.y), p.y_stride};
  RunGemmJobs(&job, 1, context);
}

void HeadMatMul(const HeadMatMulParams& p, CpuContext& context) {
  if (p.m == 0 || p.heads == 0) return;
  const GemmKernels& kernels = *context.gemm;
  const auto* x = static_cast<const float*>(p.x);
  auto* y = static_cast<float*>(p.y);
  ScratchArena::Scope scope(context.shared);
  auto* jobs = context.shared.Allocate<GemmJob>(p.heads);
  for (int h = 0; h < p.heads; ++h) {
    const CpuPackedWeight& w = *CpuMatrices(p.w)[h];
    const GemmRows rows = AllocateGemmRows(w, kernels, p.m, context.shared);
    jobs[h] = {&w, rows, p.m, y + h * p.y_head_stride, p.y_stride};
  }
  const int64_t grain = ConvertRowsGrain(jobs[0].w->k);
  context.pool->ParallelFor(int64_t{p.heads} * p.m, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t h = i / p.m, row = i % p.m;
      ConvertGemmRow(*jobs[h].w, kernels, x + row * p.x_stride + h * p.x_head_stride,
                     jobs[h].x.row(row));
    }
  });
  RunGemmJobs(jobs, p.heads, context);
}

void Mlp(const MlpParams& p, CpuContext& context) {
  if (p.tokens == 0) return;
  ScratchArena::Scope scope(context.shared);
  float* gate_up = context.shared.Allocate<float>(p.tokens * 2 * p.width);
  MatMul({.x = p.x, .x_stride = p.w13->k, .w = p.w13, .y = gate_up, .y_stride = 2 * p.width,
          .m = p.tokens}, context);
  const CpuPackedWeight& w2 = *CpuMatrices(p.w2)[0];
  const GemmRows rows = AllocateGemmRows(w2, *context.gemm, p.tokens, context.shared);
  context.pool->ParallelFor(
      p.tokens, ConvertRowsGrain(p.width), [&](int64_t begin, int64_t end, int thread) {
        for (int64_t i = begin; i < end; ++i) {
          SiluGemmRow(w2, gate_up + i * 2 * p.width, rows.row(i), context, thread);
        }
      });
  const GemmJob job{&w2, rows, p.tokens, static_cast<float*>(p.out), w2.n};
  RunGemmJobs(&job, 1, context);
}

void MatMulSerial(const float* x, int64_t x_stride, int m, const CpuPackedWeight& w, float* y,
                  int64_t y_stride, const GemmKernels& kernels, ScratchArena& scratch) {
  ScratchArena::Scope scope(scratch);
  const GemmRows rows = AllocateGemmRows(w, kernels, m, scratch);
  for (int i = 0; i < m; ++i) ConvertGemmRow(w, kernels, x + i * x_stride, rows.row(i));
  RunGemmSerial({&w, rows, m, y, y_stride}, kernels, scratch);
}

}  // namespace hadal
