#include <algorithm>

#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/vector_io.cuh"
#include "kernels/cuda/rows/ops.h"

namespace hadal::cuda {
namespace {

struct EmbedArgs {
  const int32_t* ids;
  const int32_t* last_tokens;
  int32_t vocab_begin;
  int32_t vocab_end;
  int64_t dim;
};

// One CTA per token.
template <typename Table, typename Act, bool kVectors>
__global__ void EmbedKernel(EmbedArgs a, const Table* table, Act* out) {
  WaitForPrevious();
  int32_t id = a.ids[blockIdx.x];
  if (id < 0 && a.last_tokens != nullptr) id = a.last_tokens[-1 - id];
  const bool mine = id >= a.vocab_begin && id < a.vocab_end;
  const Table* from = table + (mine ? id - a.vocab_begin : 0) * a.dim;
  Act* to = out + blockIdx.x * a.dim;
  if constexpr (kVectors) {
    for (int64_t i = threadIdx.x * kVector; i < a.dim; i += blockDim.x * kVector) {
      float x[kVector] = {};
      if (mine) LoadVector(from + i, x);
      StoreVector(to + i, x);
    }
  } else {
    for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) {
      to[i] = FromFloat<Act>(mine ? ToFloat(from[i]) : 0.0f);
    }
  }
  AllowNext();
}

template <typename Table, typename Act>
void EmbedAs(const EmbedParams& p, CudaContext& context) {
  const EmbedArgs args{p.ids, p.last_tokens, p.vocab_begin, p.vocab_end, p.dim};
  const auto* table = static_cast<const Table*>(p.table);
  auto* out = static_cast<Act*>(p.out);
  const bool vectors = p.dim % kVector == 0 && VectorRows(table, p.dim, sizeof(Table)) &&
                       VectorRows(out, p.dim, sizeof(Act));
  const int64_t steps = vectors ? p.dim / kVector : p.dim;
  const auto threads = static_cast<unsigned>(std::clamp<int64_t>((steps + 31) / 32 * 32, 32, 256));
  Launch(vectors ? EmbedKernel<Table, Act, true> : EmbedKernel<Table, Act, false>, dim3(p.tokens),
         dim3(threads), 0, context, args, table, out);
  HADAL_CUDA_LAUNCHED();
}

}  // namespace

void Embed(const EmbedParams& p, CudaContext& context) {
  if (p.tokens == 0) return;
  const bool wide_table = p.table_dtype == DType::kF32;
  if (context.act == DType::kF32 || p.float_out) {
    wide_table ? EmbedAs<float, float>(p, context) : EmbedAs<__nv_bfloat16, float>(p, context);
  } else {
    wide_table ? EmbedAs<float, __nv_bfloat16>(p, context)
               : EmbedAs<__nv_bfloat16, __nv_bfloat16>(p, context);
  }
}

}  // namespace hadal::cuda
