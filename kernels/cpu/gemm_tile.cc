#include "kernels/cpu/gemm_tile.h"

#include <algorithm>
#include <cstring>

namespace hadal {
namespace {

constexpr int64_t kAheadBytes = 8 * 1024;  // fetched before use where weights are read once
constexpr int64_t kCodeLine = kPanel * 2;  // bytes of e4m3 that are a step of a panel
static_assert(kFirstLevelSlice / kLine / kMaxGemmPanels % kStepUnit == 0);

// The sums of a tile run over units: steps, of FP8 scale blocks. Panels that share a register block
// are a group. A slice of units of one group meets all rows, block by block, then the next group of
// the strip takes the same units, so that the activations of a slice stay in a cache.
class TileRunner {
 public:
  TileRunner(const GemmJob& job, const GemmKernels& kernels, const GemmTile& tile,
             ScratchArena& scratch)
      : job_(job), w_(*job.w), kernels_(kernels), shape_(ShapeFor(w_, kernels)), tile_(tile),
        scratch_(scratch), f8_(w_.dtype == DType::kF8E4M3),
        once_(tile.rows <= shape_.max_rows), direct_(f8_ && tile.rows <= kernels.f8_rows),
        a_step_(StepBytes(w_, kernels)), group_(GroupPanels(shape_, tile.rows)),
        units_(f8_ ? w_.blocks : w_.steps), slice_(SliceUnits()) {
    fn_ = w_.dtype == DType::kF32 ? kernels.f32 : direct_ ? kernels.f8 : kernels.bf16;
  }

  void Run() {
    ScratchArena::Scope scope(scratch_);
    if (f8_ && !direct_) {
      expanded_stride_ = std::max(w_.first_steps, w_.block_steps) * slice_ * kLine;
      expanded_ = scratch_.Allocate<char>(expanded_stride_ * group_);
    }
    // Weights that are read once come in the order of memory.
    const int64_t strip = once_ ? group_ : tile_.panels;
    for (int64_t panel = tile_.panel; panel < end(); panel += strip) {
      RunStrip(panel, std::min(panel + strip, end()));
    }
  }

 private:
  struct Group {
    int64_t panel = 0;
    int panels = 0;
    float* sums = nullptr;    // [rows][sums_stride]
    int64_t sums_stride = 0;
  };

  int64_t end() const { return tile_.panel + tile_.panels; }

  // In equal parts; sums are resumed at multiples of kStepUnit.
  int64_t SliceUnits() const {
    if (once_) return f8_ && !direct_ ? 1 : units_;
    const int64_t steps = shape_.slice_bytes / (kLine * group_);
    const int64_t most = f8_ ? std::max<int64_t>(steps / w_.block_steps, 1) : steps;
    const int64_t equal = CeilDiv(units_, CeilDiv(units_, most));
    return f8_ ? equal : RoundUp(equal, kStepUnit);
  }

  // Where a unit begins, or the last one ends.
  int64_t StepAt(int64_t unit) const {
    if (!f8_) return unit;
    if (unit == w_.blocks) return (w_.k + (w_.lead > 0 ? 2 : 1)) / 2;
    return unit == 0 ? 0 : w_.first_steps + (unit - 1) * w_.block_steps;
  }

  void RunStrip(int64_t begin, int64_t strip_end) {
    ScratchArena::Scope scope(scratch_);
    // Sums that are resumed lie close together; those of outputs beyond the last take a detour too.
    const int64_t whole = w_.n / kPanel;
    const bool resumed = f8_ || slice_ < units_;
    float* sums = nullptr;
    if (resumed || strip_end > whole) {
      sums = scratch_.Allocate<float>(tile_.rows * (strip_end - begin) * kPanel);
    }
    for (int64_t unit = 0; unit < units_; unit += slice_) {
      const int64_t unit_end = std::min(unit + slice_, units_);
      for (Group g{.panel = begin}; g.panel < strip_end; g.panel += g.panels) {
        g.panels = group_;
        while (g.panels > 1 && g.panel + g.panels > std::min(whole, strip_end)) g.panels /= 2;
        const bool detour = resumed || g.panel == whole;
        float* y = job_.y + tile_.row * job_.y_stride + g.panel * kPanel;
        g.sums = detour ? sums + (g.panel - begin) * kPanel * tile_.rows : y;
        g.sums_stride = detour ? g.panels * kPanel : job_.y_stride;
        GemmBlock block = BlockOf(g, unit, unit_end);
        SetAhead(g, begin, strip_end, unit, &block);
        RunRows(block, g.panel, unit, unit_end);
        if (detour && unit_end == units_) CopySums(g, y);
      }
    }
  }

  void CopySums(const Group& g, float* y) const {
    const int64_t valid = std::min<int64_t>(g.panels * kPanel, w_.n - g.panel * kPanel);
    for (int64_t r = 0; r < tile_.rows; ++r) {
      std::memcpy(y + r * job_.y_stride, g.sums + r * g.sums_stride,
                  static_cast<size_t>(valid) * sizeof(float));
    }
  }

  // Units [unit, unit_end) of a group and all rows. FP8 is expanded for it, unless kernels do that.
  GemmBlock BlockOf(const Group& g, int64_t unit, int64_t unit_end) {
    const int64_t step = StepAt(unit), steps = StepAt(unit_end) - step;
    GemmBlock block;
    block.a = job_.x.row(tile_.row) + step * a_step_;
    block.a_stride = job_.x.stride;
    block.b = w_.panel(g.panel) + step * (f8_ ? kCodeLine : kLine);
    block.b_stride = w_.panel_bytes;
    block.steps = steps;
    block.c = g.sums;
    block.c_stride = g.sums_stride;
    block.panels = g.panels;
    if (!f8_ || direct_) return block;
    for (int p = 0; p < g.panels; ++p) {
      kernels_.expand_f8(static_cast<const uint8_t*>(block.b) + p * w_.panel_bytes,
                         steps * kCodeLine,
                         reinterpret_cast<uint16_t*>(expanded_ + p * expanded_stride_));
    }
    block.b = expanded_;
    block.b_stride = expanded_stride_;
    return block;
  }

  // What to fetch meanwhile: the next group's part of this slice, or the next slice of the strip's
  // first group, or the next strip.
  void SetAhead(const Group& g, int64_t begin, int64_t strip_end, int64_t unit,
                GemmBlock* block) const {
    block->ahead_stride = w_.panel_bytes;
    block->ahead_far = !once_;
    if (once_ && !f8_) {
      block->ahead = static_cast<const char*>(block->b) + kAheadBytes / g.panels;
      block->ahead_lines = w_.steps;
      return;
    }
    int64_t panel = g.panel + g.panels;
    if (panel == strip_end) {
      unit += slice_;
      if (unit < units_) {
        panel = begin;
      } else {
        unit = 0;
      }
    }
    // Expansion itself fetches what stands behind in the same panel.
    if (panel == end() || (once_ && panel == g.panel)) return;
    const int64_t step_bytes = f8_ ? kCodeLine : kLine;
    const int64_t steps = StepAt(std::min(unit + slice_, units_)) - StepAt(unit);
    block->ahead = w_.panel(panel) + StepAt(unit) * step_bytes;
    block->ahead_lines = CeilDiv(steps * step_bytes, kLine);
  }

  // Blocks of rows of nearly equal height, each of which takes its scale blocks in turn, while its
  // sums stay in the first-level cache. Each call fetches its share of the lines ahead.
  void RunRows(const GemmBlock& slice, int64_t panel, int64_t unit, int64_t unit_end) const {
    const int64_t blocks = CeilDiv(tile_.rows, shape_.max_rows);
    const int64_t parts = f8_ ? unit_end - unit : 1;
    const int64_t calls = blocks * parts;
    const auto cut = [&](int64_t i) {
      return std::min(RoundUp(tile_.rows * i / blocks, shape_.row_unit), tile_.rows);
    };
    GemmBlock block = slice;
    block.first = unit == 0;
    for (int64_t call = 0; call < calls; ++call) {
      const int64_t row = cut(call / parts);
      block.rows = static_cast<int>(cut(call / parts + 1) - row);
      block.a = static_cast<const char*>(slice.a) + row * slice.a_stride;
      block.c = slice.c + row * slice.c_stride;
      const int64_t line = slice.ahead_lines * call / calls;
      block.ahead = slice.ahead + line * kLine;
      block.ahead_lines = slice.ahead_lines * (call + 1) / calls - line;
      if (f8_) TakeScaleBlock(slice, panel, unit, unit + call % parts, &block);
      fn_(block);
    }
  }

  // Narrows a block of rows of a slice, which begins at `unit`, to one scale block.
  void TakeScaleBlock(const GemmBlock& slice, int64_t panel, int64_t unit, int64_t scale_block,
                      GemmBlock* block) const {
    const int64_t step = StepAt(scale_block) - StepAt(unit);
    block->a = static_cast<const char*>(block->a) + step * a_step_;
    block->b = static_cast<const char*>(slice.b) + step * (direct_ ? kCodeLine : kLine);
    block->steps = StepAt(scale_block + 1) - StepAt(scale_block);
    block->scale = w_.scale + (panel * w_.blocks + scale_block) * kPanel;
    block->scale_stride = w_.blocks * kPanel;
    block->first = scale_block == 0;
  }

  const GemmJob& job_;
  const CpuPackedWeight& w_;
  const GemmKernels& kernels_;
  const GemmShape& shape_;
  const GemmTile tile_;
  ScratchArena& scratch_;
  const bool f8_;
  const bool once_;                // one block takes all rows
  const bool direct_;              // FP8 that no expansion precedes
  const int64_t a_step_;
  const int group_;                // panels
  const int64_t units_;
  const int64_t slice_;            // units
  GemmFn fn_ = nullptr;
  char* expanded_ = nullptr;       // [panels of a group][steps of a slice][16] pairs of bf16
  int64_t expanded_stride_ = 0;    // bytes between panels
};

// A sum of nothing: a rank's slice of a narrow MLP can be empty.
void ClearTile(const GemmJob& job, const GemmTile& tile) {
  const int64_t column = tile.panel * kPanel;
  const int64_t columns = std::min(tile.panels * kPanel, job.w->n - column);
  for (int64_t row = tile.row; row < tile.row + tile.rows; ++row) {
    std::fill_n(job.y + row * job.y_stride + column, columns, 0.0f);
  }
}

}  // namespace

bool HalfActivations(const CpuPackedWeight& w, const GemmKernels& kernels) {
  return w.dtype != DType::kF32 && kernels.bf16_activations;
}

int64_t StepBytes(const CpuPackedWeight& w, const GemmKernels& kernels) {
  return w.dtype == DType::kF32 || HalfActivations(w, kernels) ? 4 : 8;
}

const GemmShape& ShapeFor(const CpuPackedWeight& w, const GemmKernels& kernels) {
  return w.dtype == DType::kF32 ? kernels.f32_shape : kernels.bf16_shape;
}

int GroupPanels(const GemmShape& shape, int64_t rows) {
  const int64_t blocks = CeilDiv(rows, shape.max_rows);
  return shape.max_panels[CeilDiv(rows, blocks)];
}

void RunGemmTile(const GemmJob& job, const GemmKernels& kernels, const GemmTile& tile,
                 ScratchArena& scratch) {
  if (job.w->k == 0) return ClearTile(job, tile);
  TileRunner(job, kernels, tile, scratch).Run();
}

}  // namespace hadal
