#include "kernels/cuda/products/cublas_plan.h"

#include <algorithm>
#include <bit>
#include <map>
#include <mutex>
#include <tuple>

#include "kernels/cuda/device/cuda_check.h"

namespace hadal::cuda {
namespace {

void CheckCublas(cublasStatus_t status, const char* call, const char* file, int line) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    ThrowCudaError(call, file, line, cublasLtGetStatusString(status));
  }
}
#define HADAL_CUBLAS(call) CheckCublas((call), #call, __FILE__, __LINE__)

// Everything that the choice of an algorithm may depend on.
using Key = std::tuple<cublasLtHandle_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int,
                       int64_t, int64_t, int64_t, bool, bool, uint32_t, uint32_t>;

struct Plan {
  bool exists = false;
  cublasLtMatmulAlgo_t algo{};
};

// Algorithms are chosen for a representative number of rows.
int64_t BucketOf(int64_t m) {
  const int64_t step = m <= 512 ? 64 : m <= 2048 ? 256 : 1024;
  return (m + step - 1) / step * step;
}

uint32_t AlignmentOf(const void* p, int64_t stride_bytes) {
  const auto bits = reinterpret_cast<uintptr_t>(p) | static_cast<uintptr_t>(stride_bytes) | 256u;
  return 1u << std::countr_zero(bits);
}

// A product as cuBLASLt sees it: column-major, so w^T comes first and y is [n, m].
class Description {
 public:
  Description(const CublasProduct& p, int64_t m) {
    const cudaDataType_t in = p.f8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    const cudaDataType_t out = p.float_out ? CUDA_R_32F : CUDA_R_16BF;
    HADAL_CUBLAS(cublasLtMatmulDescInit(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    Set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    Set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
    if (p.f8) {
      Set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F);
      Set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
      Set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, p.w_scale);
      Set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, p.x_scale);
    }
    Init(&w, in, p.k, p.n, p.w_stride, p.batch, p.w_step);
    Init(&x, in, p.k, m, p.x_stride, p.batch, p.x_step);
    Init(&y, out, p.n, m, p.y_stride, p.batch, p.y_step);
  }

  cublasLtMatmulDescOpaque_t desc{};
  cublasLtMatrixLayoutOpaque_t w{}, x{}, y{};

 private:
  template <typename T>
  void Set(cublasLtMatmulDescAttributes_t attribute, T value) {
    HADAL_CUBLAS(cublasLtMatmulDescSetAttribute(&desc, attribute, &value, sizeof(value)));
  }
  static void Init(cublasLtMatrixLayoutOpaque_t* layout, cudaDataType_t type, int64_t rows,
                   int64_t cols, int64_t stride, int32_t batch, int64_t step) {
    HADAL_CUBLAS(cublasLtMatrixLayoutInit(layout, type, static_cast<uint64_t>(rows),
                                          static_cast<uint64_t>(cols), stride));
    if (batch == 1) return;
    HADAL_CUBLAS(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                                  &batch, sizeof(batch)));
    HADAL_CUBLAS(cublasLtMatrixLayoutSetAttribute(
        layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof(step)));
  }
};

Plan Search(const CublasProduct& p, int64_t m, uint32_t in_alignment, uint32_t out_alignment,
            CudaContext& context) {
  Description d(p, m);
  cublasLtMatmulPreferenceOpaque_t preference{};
  HADAL_CUBLAS(cublasLtMatmulPreferenceInit(&preference));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    HADAL_CUBLAS(
        cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
      static_cast<uint64_t>(context.cublas_workspace_bytes));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t{16});
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, in_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out_alignment);
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      context.cublas, &d.desc, &d.w, &d.x, &d.y, &d.y, &preference, 1, &result, &found);
  Plan plan;
  plan.exists = status == CUBLAS_STATUS_SUCCESS && found > 0;
  if (plan.exists) plan.algo = result.algo;
  return plan;
}

// The plan for a key, made by `make` when it is asked for first.
template <typename Make>
Plan Remembered(const Key& key, Make make) {
  static std::mutex mutex;
  static std::map<Key, Plan> plans;
  const std::scoped_lock lock(mutex);
  const auto found = plans.find(key);
  if (found != plans.end()) return found->second;
  return plans.emplace(key, make()).first->second;
}

}  // namespace

bool RunCublas(const CublasProduct& p, CudaContext& context) {
  const int64_t in_size = p.f8 ? 1 : 2, out_size = p.float_out ? 4 : 2;
  const uint32_t in_alignment = std::min(16u, AlignmentOf(p.x, p.x_stride * in_size));
  const uint32_t out_alignment = std::min(16u, AlignmentOf(p.y, p.y_stride * out_size));
  Description d(p, p.m);
  // An algorithm chosen for the bucket may refuse the exact size; then that has its own plan.
  for (const int64_t m : {BucketOf(p.m), p.m}) {
    const Key key{context.cublas, m,          p.n,         p.k,          p.x_stride,
                  p.w_stride,     p.y_stride, p.batch,     p.x_step,     p.w_step,
                  p.y_step,       p.f8,       p.float_out, in_alignment, out_alignment};
    const Plan plan =
        Remembered(key, [&] { return Search(p, m, in_alignment, out_alignment, context); });
    if (!plan.exists) continue;
    cublasLtMatmulHeuristicResult_t checked{};
    if (cublasLtMatmulAlgoCheck(context.cublas, &d.desc, &d.w, &d.x, &d.y, &d.y, &plan.algo,
                                &checked) != CUBLAS_STATUS_SUCCESS ||
        static_cast<int64_t>(checked.workspaceSize) > context.cublas_workspace_bytes) {
      continue;
    }
    const float one = 1, zero = 0;
    HADAL_CUBLAS(cublasLtMatmul(context.cublas, &d.desc, &one, p.w, &d.w, p.x, &d.x, &zero, p.y,
                                &d.y, p.y, &d.y, &plan.algo, context.cublas_workspace,
                                static_cast<size_t>(context.cublas_workspace_bytes),
                                context.stream));
    return true;
  }
  return false;
}

}  // namespace hadal::cuda
