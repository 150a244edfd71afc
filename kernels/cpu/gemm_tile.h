#pragma once

// One tile of a product: what a thread takes at a time. Used by gemm.cc only.

#include <cstdint>

#include "common/rounding.h"
#include "kernels/cpu/gemm.h"

namespace hadal {

inline constexpr int64_t kLine = 64;  // bytes of a cache line, and of a step of a panel

// Whether the kernels of this weight read activations of bf16.
bool HalfActivations(const CpuPackedWeight& w, const GemmKernels& kernels);
// Bytes of one row of activations for a step.
int64_t StepBytes(const CpuPackedWeight& w, const GemmKernels& kernels);
const GemmShape& ShapeFor(const CpuPackedWeight& w, const GemmKernels& kernels);
// Panels that the blocks of so many rows take together.
int GroupPanels(const GemmShape& shape, int64_t rows);

// Rows [row, row + rows) and panels [panel, panel + panels) of a job.
struct GemmTile {
  int64_t row = 0;
  int64_t rows = 0;
  int64_t panel = 0;
  int64_t panels = 0;
};

void RunGemmTile(const GemmJob& job, const GemmKernels& kernels, const GemmTile& tile,
                 ScratchArena& scratch);

}  // namespace hadal
