#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/vector_io.cuh"
#include "kernels/cuda/experts/moe_combine.h"
#include "kernels/cuda/experts/ops.h"

namespace hadal::cuda {
namespace {

constexpr int kThreads = 256;

constexpr int kAtOnce = 8;  // rows whose loads are in flight together

template <typename T, int kVec>
__device__ __forceinline__ Pack<T, kVec> LoadPack(const void* rows, int64_t at) {
  return *reinterpret_cast<const Pack<T, kVec>*>(static_cast<const T*>(rows) + at);
}
template <typename T, int kVec>
__device__ __forceinline__ void AddScaled(const Pack<T, kVec>& x, float factor, float* sum) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum[i] += factor * ToFloat(x.at[i]);
}

// The choices first .. first + kAtOnce of a token.
struct ChoicesOf {
  int row[kAtOnce];
  float factor[kAtOnce];

  __device__ __forceinline__ ChoicesOf(const CombineArgs& a, int64_t t, int first) {
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int64_t choice = t * a.top_k + first + j;
      const bool there = first + j < a.top_k;
      row[j] = there ? __ldcg(a.row_of + choice) : -1;
      factor[j] = there && a.weights != nullptr ? __ldcg(a.weights + choice) : 1.0f;
    }
  }
  // sum += their rows at column c.
  template <typename Row, int kVec>
  __device__ __forceinline__ void Add(const CombineArgs& a, int64_t c, float* sum) const {
    Pack<Row, kVec> x[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (row[j] >= 0) x[j] = LoadPack<Row, kVec>(a.rows, int64_t{row[j]} * a.dim + c);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (row[j] >= 0) AddScaled<Row, kVec>(x[j], factor[j], sum);
    }
  }
};

// One thread per kVec elements of one token.
template <typename Act, typename Row, int kVec>
__global__ void __launch_bounds__(kThreads) CombineKernel(CombineArgs a) {
  const int64_t columns = a.dim / kVec;
  const int64_t unit = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t t = min(unit / columns, int64_t{a.tokens} - 1), c = unit % columns * kVec;
  if (!a.choices_known) WaitForPrevious();
  const ChoicesOf choices(a, t, 0);
  if (a.choices_known) WaitForPrevious();
  AllowNext();
  if (unit >= a.tokens * columns) return;
  float sum[kVec] = {};
  if (a.shared != nullptr) {
    AddScaled<Row, kVec>(LoadPack<Row, kVec>(a.shared, t * a.dim + c), 1.0f, sum);
  }
  choices.Add<Row, kVec>(a, c, sum);
  for (int j = kAtOnce; j < a.top_k; j += kAtOnce) ChoicesOf(a, t, j).Add<Row, kVec>(a, c, sum);
  Pack<Act, kVec> out;
#pragma unroll
  for (int i = 0; i < kVec; ++i) out.at[i] = FromFloat<Act>(sum[i]);
  *reinterpret_cast<Pack<Act, kVec>*>(static_cast<Act*>(a.out) + t * a.dim + c) = out;
}

template <typename Act, typename Row>
void LaunchCombine(const CombineArgs& a, CudaContext& context) {
  constexpr int kVec = 16 / sizeof(Row);
  const int vec = a.dim % kVec == 0 ? kVec : 1;
  const int64_t units = a.tokens * (a.dim / vec);
  const auto grid = static_cast<unsigned>((units + kThreads - 1) / kThreads);
  if (vec == 1) {
    Launch(CombineKernel<Act, Row, 1>, grid, kThreads, 0, context, a);
  } else {
    Launch(CombineKernel<Act, Row, kVec>, grid, kThreads, 0, context, a);
  }
}

}  // namespace

void CombineRows(const CombineArgs& args, DType row_dtype, CudaContext& context) {
  if (args.tokens == 0) return;
  if (context.act == DType::kF32) {
    HADAL_CHECK(row_dtype == DType::kF32);
    LaunchCombine<float, float>(args, context);
  } else if (row_dtype == DType::kF32) {
    LaunchCombine<bf16, float>(args, context);
  } else {
    LaunchCombine<bf16, bf16>(args, context);
  }
}

void AddRows(const AddRowsParams& p, CudaContext& context) {
  CombineRows({.shared = p.accumulate ? p.out : nullptr,
               .rows = p.rows,
               .row_of = p.row_of,
               .out = p.out,
               .tokens = p.tokens,
               .top_k = p.width,
               .dim = p.dim},
              context.act, context);
}

}  // namespace hadal::cuda
