#pragma once

#include <cstdint>

#include "kernels/cpu/gemm_kernel.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/packed_weight.h"

namespace hadal {

// Rows of activations in the form that the kernels of one weight read: bf16 where they multiply
// that, zeros inserted where the packed weight has them, padded to whole steps.
struct GemmRows {
  char* data = nullptr;
  int64_t stride = 0;  // bytes

  char* row(int64_t i) const { return data + i * stride; }
};

// Room for `rows` rows, and for what the kernels read behind them.
GemmRows AllocateGemmRows(const CpuPackedWeight& w, const GemmKernels& kernels, int64_t rows,
                          ScratchArena& arena);
// Fills one row from w.k floats.
void ConvertGemmRow(const CpuPackedWeight& w, const GemmKernels& kernels, const float* x,
                    char* row);

// Fills one row with silu(gate) * up; gate_up: [2 * w.k], gate first.
void SiluGemmRow(const CpuPackedWeight& w, const float* gate_up, char* row, CpuContext& context,
                 int thread);

// y = x w^T, x as GemmRows of this weight.
struct GemmJob {
  const CpuPackedWeight* w = nullptr;
  GemmRows x;
  int rows = 0;
  float* y = nullptr;    // [rows, w->n]
  int64_t y_stride = 0;  // floats
};

// Runs independent products, spread over the pool together.
void RunGemmJobs(const GemmJob* jobs, int count, CpuContext& context);
// One product on the calling thread.
void RunGemmSerial(const GemmJob& job, const GemmKernels& kernels, ScratchArena& scratch);

}  // namespace hadal
