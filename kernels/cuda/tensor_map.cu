#include <string>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/tensor_map.h"

namespace hadal::cuda {
namespace {

// The driver's function by name, so that no program needs the driver to start.
auto EncodeFunction() {
  static const auto function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    HADAL_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) {
      ThrowCudaError("cuTensorMapEncodeTiled", __FILE__, __LINE__, "the driver does not have it");
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  return function;
}

}  // namespace

CUtensorMap TensorMap2d(const void* base, int64_t columns, int64_t rows, int64_t row_bytes,
                        int box_rows) {
  CUtensorMap map{};
  const cuuint64_t dims[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[2] = {64, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result = EncodeFunction()(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(base), dims, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    const std::string what = "error " + std::to_string(static_cast<int>(result));
    ThrowCudaError("cuTensorMapEncodeTiled", __FILE__, __LINE__, what.c_str());
  }
  return map;
}

}  // namespace hadal::cuda
