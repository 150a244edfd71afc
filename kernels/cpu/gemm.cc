#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <cstring>

namespace hadal {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kTileBytes = 256 * 1024;  // weights per tile when rows are few
constexpr int64_t kTileRows = 128;
constexpr int64_t kSliceBytes = 24 * 1024;  // weights that stay in the first-level cache

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool HalfActivations(const CpuPackedWeight& w, const GemmKernels& kernels) {
  return w.dtype != DType::kF32 && kernels.bf16_activations;
}

int64_t StepBytes(const CpuPackedWeight& w, const GemmKernels& kernels) {
  return w.dtype == DType::kF32 || HalfActivations(w, kernels) ? 4 : 8;
}

// Rows [row, row + rows) and panels [panel, panel + panels) of a job.
struct Tile {
  int64_t row = 0;
  int64_t rows = 0;
  int64_t panel = 0;
  int64_t panels = 0;
};

// How a job is cut into tiles. It may depend on anything, since no sum is split between tiles.
struct Tiling {
  int64_t rows = 0;         // per tile
  int64_t panels = 0;
  int64_t row_tiles = 0;
  int64_t panel_tiles = 0;

  int64_t count() const { return row_tiles * panel_tiles; }
};

int GroupPanels(const GemmKernels& kernels, int64_t rows) {
  const int64_t blocks = CeilDiv(rows, kernels.max_rows);
  return kernels.max_panels[CeilDiv(rows, blocks)];
}

Tiling MakeTiling(const GemmJob& job, const GemmKernels& kernels, int threads, int jobs) {
  Tiling t;
  t.row_tiles = CeilDiv(job.rows, kTileRows);
  t.rows = CeilDiv(job.rows, t.row_tiles);
  const int64_t group = GroupPanels(kernels, t.rows);
  // Enough tiles to keep all threads busy to the end, each worth its start.
  const int64_t wanted = CeilDiv(int64_t{4} * threads, t.row_tiles * jobs);
  const int64_t by_bytes = kTileBytes / std::max<int64_t>(job.w->panel_bytes, 1);
  t.panels = std::min(job.rows > kernels.max_rows ? group : by_bytes, job.w->panels / wanted);
  t.panels = std::max(t.panels / group * group, group);
  t.panel_tiles = CeilDiv(job.w->panels, t.panels);
  return t;
}

Tile TileAt(const GemmJob& job, const Tiling& t, int64_t index) {
  // Neighbours share panels, which then come from a cache.
  const int64_t row = index % t.row_tiles * t.rows, panel = index / t.row_tiles * t.panels;
  return {row, std::min<int64_t>(t.rows, job.rows - row), panel,
          std::min(t.panels, job.w->panels - panel)};
}

// One slice of steps of a few panels, for all rows of a tile in blocks of nearly equal height.
void RunRowBlocks(GemmBlock block, GemmFn fn, int64_t rows, int64_t max_rows) {
  const int64_t blocks = CeilDiv(rows, max_rows);
  const char* a = static_cast<const char*>(block.a);
  float* c = block.c;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t begin = rows * i / blocks;
    block.rows = static_cast<int>(rows * (i + 1) / blocks - begin);
    block.a = a + begin * block.a_stride;
    block.c = c + begin * block.c_stride;
    fn(block);
  }
}

class TileRunner {
 public:
  TileRunner(const GemmJob& job, const GemmKernels& kernels, ScratchArena& scratch)
      : job_(job), w_(*job.w), kernels_(kernels), scratch_(scratch) {}

  void Run(const Tile& tile) {
    ScratchArena::Scope scope(scratch_);
    const int group = GroupPanels(kernels_, tile.rows);
    if (w_.dtype == DType::kF8E4M3 && tile.rows > kernels_.f8_rows) {
      expanded_stride_ = std::max(w_.first_steps, w_.block_steps) * kPanel * 4;
      expanded_ = scratch_.Allocate<char>(expanded_stride_ * group);
    }
    const int64_t end = tile.panel + tile.panels;
    const int64_t whole = std::min(end, w_.n / kPanel);
    int64_t panel = tile.panel;
    for (int panels = group; panels >= 1; panels /= 2) {
      for (; panel + panels <= whole; panel += panels) {
        RunGroup(tile, panel, panels, job_.y + tile.row * job_.y_stride + panel * kPanel,
                 job_.y_stride);
      }
    }
    if (panel < end) RunRagged(tile, panel);
  }

 private:
  // The last panel has fewer than 16 outputs: they take a detour.
  void RunRagged(const Tile& tile, int64_t panel) {
    float* c = scratch_.Allocate<float>(tile.rows * kPanel);
    RunGroup(tile, panel, 1, c, kPanel);
    const int64_t valid = w_.n - panel * kPanel;
    for (int64_t r = 0; r < tile.rows; ++r) {
      std::memcpy(job_.y + (tile.row + r) * job_.y_stride + panel * kPanel, c + r * kPanel,
                  static_cast<size_t>(valid) * sizeof(float));
    }
  }

  void RunGroup(const Tile& tile, int64_t panel, int panels, float* c, int64_t c_stride) {
    GemmBlock block;
    block.a = job_.x.row(tile.row);
    block.a_stride = job_.x.stride;
    block.b = w_.panel(panel);
    block.b_stride = w_.panel_bytes;
    block.steps = w_.steps;
    block.c = c;
    block.c_stride = c_stride;
    block.panels = panels;
    if (w_.dtype == DType::kF8E4M3) {
      RunScaleBlocks(block, tile.rows, panel);
    } else {
      RunSlices(block, tile.rows);
    }
  }

  void RunSlices(GemmBlock block, int64_t rows) {
    const GemmFn fn = w_.dtype == DType::kF32 ? kernels_.f32 : kernels_.bf16;
    const int64_t a_step = StepBytes(w_, kernels_);
    const int64_t slice =
        rows <= kernels_.max_rows ? w_.steps : kSliceBytes / (kLine * block.panels);
    const auto* a = static_cast<const char*>(block.a);
    const auto* b = static_cast<const char*>(block.b);
    for (int64_t s = 0; s < w_.steps; s += slice) {
      block.a = a + s * a_step;
      block.b = b + s * kLine;
      block.steps = std::min(slice, w_.steps - s);
      block.first = s == 0;
      RunRowBlocks(block, fn, rows, kernels_.max_rows);
    }
  }

  void RunScaleBlocks(GemmBlock block, int64_t rows, int64_t panel) {
    const int64_t a_step = StepBytes(w_, kernels_);
    const auto* a = static_cast<const char*>(block.a);
    const auto* codes = static_cast<const uint8_t*>(block.b);
    const bool direct = rows <= kernels_.f8_rows;
    if (!direct) {
      block.b = expanded_;
      block.b_stride = expanded_stride_;
    }
    block.scale_stride = w_.blocks * kPanel;
    const int64_t stored = (w_.k + (w_.lead > 0 ? 2 : 1)) / 2;
    for (int64_t b = 0; b < w_.blocks; ++b) {
      const int64_t step = b == 0 ? 0 : w_.first_steps + (b - 1) * w_.block_steps;
      block.steps = std::min(b == 0 ? w_.first_steps : w_.block_steps, stored - step);
      block.a = a + step * a_step;
      block.scale = w_.scale + (panel * w_.blocks + b) * kPanel;
      block.first = b == 0;
      if (direct) {
        block.b = codes + step * kPanel * 2;
        block.rows = static_cast<int>(rows);
        kernels_.f8(block);
        continue;
      }
      for (int p = 0; p < block.panels; ++p) {
        kernels_.expand_f8(codes + p * w_.panel_bytes + step * kPanel * 2, block.steps * kPanel * 2,
                           reinterpret_cast<uint16_t*>(expanded_ + p * expanded_stride_));
      }
      RunRowBlocks(block, kernels_.bf16, rows, kernels_.max_rows);
    }
  }

  const GemmJob& job_;
  const CpuPackedWeight& w_;
  const GemmKernels& kernels_;
  ScratchArena& scratch_;
  char* expanded_ = nullptr;       // [panels][steps of a scale block][16] pairs of bf16
  int64_t expanded_stride_ = 0;    // bytes between panels
};

}  // namespace

const GemmKernels& GemmKernelsFor(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable: return kGemmPortable;
    case CpuIsa::kAvx2: return kGemmAvx2;
    case CpuIsa::kAvx512: return kGemmAvx512;
    case CpuIsa::kAvx512Bf16:
    case CpuIsa::kAmx: return kGemmAvx512Bf16;
  }
  return kGemmPortable;
}

int64_t GemmRowStride(const CpuPackedWeight& w, const GemmKernels& kernels) {
  return (CeilDiv(w.steps * StepBytes(w, kernels), kLine) | 1) * kLine;
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

void RunGemmJobs(const GemmJob* jobs, int count, CpuContext& context) {
  if (count == 0) return;
  const GemmKernels& kernels = GemmKernelsFor(context.isa);
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
      TileRunner(jobs[job], kernels, context.scratch[static_cast<size_t>(thread)])
          .Run(TileAt(jobs[job], tilings[job], i - first_tile[job]));
    }
  });
}

void RunGemmSerial(const GemmJob& job, const GemmKernels& kernels, ScratchArena& scratch) {
  if (job.rows == 0) return;
  TileRunner(job, kernels, scratch).Run({0, job.rows, 0, job.w->panels});
}

}  // namespace hadal
