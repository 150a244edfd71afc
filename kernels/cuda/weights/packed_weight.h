#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/device/cuda_context.h"

namespace hadal {

// Matrices as a device reads them: row-major, k contiguous, one after the other.
//   kBF16, kF32  [count][n][stride] of the type
//   kF8E4M3      [count][n][stride] bytes, and scale [count][scale_rows_count][k_blocks] float
struct CudaPackedWeight : PackedWeight {
  // Elements between rows: k rounded up to 16, the rest zero, so that every row starts at 16 bytes.
  int64_t stride = 0;
  const void* data = nullptr;  // device

  // kF8E4M3: element (r, c) of matrix i is code * scale[(i * scale_n + r / scale_rows) * k_blocks +
  // (c + k_lead) / 128].
  const float* scale = nullptr;  // device
  int scale_rows = 1;   // 128 when the blocks of all sources begin at multiples of 128 rows
                        // of the stacked matrix, 1 otherwise
  int64_t scale_n = 0;  // ceil(n / scale_rows)
  int64_t k_blocks = 0;
  int k_lead = 0;  // columns of the first block that the slice leaves out

  const char* matrix(int64_t i) const {
    return static_cast<const char*>(data) + i * n * stride * DTypeSize(dtype);
  }

  CudaPackedWeight() = default;
  ~CudaPackedWeight() override;
  CudaPackedWeight(const CudaPackedWeight&) = delete;
  CudaPackedWeight& operator=(const CudaPackedWeight&) = delete;
};

// The type that matrices of `dtype` are packed in. FP8 heads are bf16 beside bf16 activations:
// cuBLASLt multiplies no stacks of FP8, and prompts would widen them in every step.
inline DType PackedType(DType dtype, WeightUse use, DType act) {
  const bool widened = dtype == DType::kF8E4M3 && use == WeightUse::kHeads && act == DType::kBF16;
  return widened ? act : dtype;
}

// Contract of Backend::Pack(); returns when the sources have been read. Sources that are all random
// are not read but made on the device. REQUIRES: scale_block 128.
std::unique_ptr<PackedWeight> PackCudaWeight(const std::vector<StackedSource>& matrices,
                                             CudaContext& context,
                                             WeightUse use = WeightUse::kStream);
// `type` is PackedType().
int64_t CudaPackedBytes(int64_t n, int64_t k, DType type);

}  // namespace hadal
