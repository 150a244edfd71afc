#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/gemm_tile.h"

namespace hadal {
namespace {

constexpr int64_t kTileBytes = 256 * 1024;  // weights per tile when one block takes all rows
constexpr int64_t kBlocksTilePanels = 16;   // when several do and resume their sums
constexpr int64_t kTileRows = 128;          // of floats, twice as many of bf16

// How a job is cut into tiles. It may depend on anything, since no sum is split between tiles.
struct Tiling {
  int64_t rows = 0;         // per tile
  int64_t panels = 0;
  int64_t row_tiles = 0;
  int64_t panel_tiles = 0;

  int64_t count() const { return row_tiles * panel_tiles; }
};

// For a share of 1 / jobs of the threads; 0: the calling thread alone.
Tiling MakeTiling(const GemmJob& job, const GemmKernels& kernels, int threads, int jobs) {
  const GemmShape& shape = ShapeFor(*job.w, kernels);
  Tiling t;
  t.row_tiles = CeilDiv(job.rows, HalfActivations(*job.w, kernels) ? 2 * kTileRows : kTileRows);
  t.rows = RoundUp(CeilDiv(job.rows, t.row_tiles), shape.row_unit);
  const int64_t group = GroupPanels(shape, t.rows);
  // Enough tiles to keep all threads busy to the end, each worth its start.
  const bool blocks = job.rows > shape.max_rows;
  const int64_t wanted =
      std::max<int64_t>(CeilDiv(int64_t{blocks ? 16 : 4} * threads, t.row_tiles * jobs), 1);
  // The first slice of a tile has not been fetched by one before: where no sums are resumed, tiles
  // are as long as they may be.
  const bool resumed = job.w->blocks > 0 || job.w->steps * kLine * group > shape.slice_bytes;
  const int64_t most = blocks ? (resumed ? kBlocksTilePanels : job.w->panels)
                              : kTileBytes / std::max<int64_t>(job.w->panel_bytes, 1);
  t.panels = std::min(most, job.w->panels / wanted);
  t.panels = std::max(t.panels / group * group, group);
  t.panel_tiles = CeilDiv(job.w->panels, t.panels);
  return t;
}

GemmTile TileAt(const GemmJob& job, const Tiling& t, int64_t index) {
  // Neighbours share panels, which then come from a cache.
  const int64_t row = index % t.row_tiles * t.rows, panel = index / t.row_tiles * t.panels;
  return {row, std::min<int64_t>(t.rows, job.rows - row), panel,
          std::min(t.panels, job.w->panels - panel)};
}

}  // namespace

const GemmKernels& GemmKernelsFor(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable: return kGemmPortable;
    case CpuIsa::kAvx2: return kGemmAvx2;
    case CpuIsa::kAvx512: return kGemmAvx512;
    case CpuIsa::kAvx512Bf16: return kGemmAvx512Bf16;
    case CpuIsa::kAmx: return kGemmAmx;
  }
  return kGemmPortable;
}

GemmRows AllocateGemmRows(const CpuPackedWeight& w, const GemmKernels& kernels, int64_t rows,
                          ScratchArena& arena) {
  // An odd number of cache lines, so that equal columns of consecutive rows do not compete for the
  // same cache set.
  const int64_t stride = (CeilDiv(w.steps * StepBytes(w, kernels), kLine) | 1) * kLine;
  const int64_t readable = RoundUp(rows, ShapeFor(w, kernels).row_unit);
  return {arena.Allocate<char>(stride * readable), stride};
}

void ConvertGemmRow(const CpuPackedWeight& w, const GemmKernels& kernels, const float* x,
                    char* row) {
  if (w.dtype == DType::kF32) {
    std::memcpy(row, x, static_cast<size_t>(w.k) * sizeof(float));
    return;
  }
  const int64_t size = HalfActivations(w, kernels) ? 2 : 4;
  const auto store = [&](const float* values, int64_t n, char* out) {
    if (HalfActivations(w, kernels)) return kernels.round(values, n, out);
    std::memcpy(out, values, static_cast<size_t>(n) * sizeof(float));
  };
  int64_t at = 0;
  if (w.lead > 0) {
    store(x, w.lead, row);
    std::memset(row + w.lead * size, 0, static_cast<size_t>(size));
    at = w.lead + 1;
  }
  store(x + w.lead, w.k - w.lead, row + at * size);
  at += w.k - w.lead;
  std::memset(row + at * size, 0, static_cast<size_t>((w.steps * 2 - at) * size));
}

void SiluGemmRow(const CpuPackedWeight& w, const float* gate_up, char* row, CpuContext& context,
                 int thread) {
  ScratchArena& arena = context.scratch[static_cast<size_t>(thread)];
  ScratchArena::Scope scope(arena);
  auto* hidden = arena.Allocate<float>(w.k);
  SiluMulSerial(gate_up, gate_up + w.k, hidden, w.k, context.isa);
  ConvertGemmRow(w, *context.gemm, hidden, row);
}

void RunGemmJobs(const GemmJob* jobs, int count, CpuContext& context) {
  if (count == 0) return;
  const GemmKernels& kernels = *context.gemm;
  ScratchArena::Scope scope(context.shared);
  auto* tilings = context.shared.Allocate<Tiling>(count);
  auto* first_tile = context.shared.Allocate<int64_t>(count + 1);
  first_tile[0] = 0;
  for (int i = 0; i < count; ++i) {
    tilings[i] = jobs[i].rows == 0 ? Tiling{}
                                   : MakeTiling(jobs[i], kernels, context.pool->size(), count);
    first_tile[i + 1] = first_tile[i] + tilings[i].count();
  }
  context.pool->ParallelFor(first_tile[count], 1, [&](int64_t begin, int64_t end, int thread) {
    int64_t job = std::upper_bound(first_tile, first_tile + count + 1, begin) - first_tile - 1;
    for (int64_t i = begin; i < end; ++i) {
      while (i >= first_tile[job + 1]) ++job;
      RunGemmTile(jobs[job], kernels, TileAt(jobs[job], tilings[job], i - first_tile[job]),
                  context.scratch[static_cast<size_t>(thread)]);
    }
  });
}

void RunGemmSerial(const GemmJob& job, const GemmKernels& kernels, ScratchArena& scratch) {
  if (job.rows == 0) return;
  const Tiling tiling = MakeTiling(job, kernels, 0, 1);
  for (int64_t i = 0; i < tiling.count(); ++i) {
    RunGemmTile(job, kernels, TileAt(job, tiling, i), scratch);
  }
}

}  // namespace hadal
