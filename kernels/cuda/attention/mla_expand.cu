#include "common/check.h"
#include "kernels/cuda/attention/mla_expand.cuh"
#include "kernels/cuda/attention/ops.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/vector_io.cuh"
#include "kernels/cuda/products/ops.h"
#include "kernels/cuda/weights/widen.h"

namespace hadal::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kKeysPerBlock = kThreads / 32;  // one warp copies one row

template <typename T>
__device__ void CopyRow(const T* in, int dim, T* out) {
  constexpr int kVector = 16 / sizeof(T);
  if (dim % kVector == 0) {
    for (int i = threadIdx.x % 32; i < dim / kVector; i += 32) {
      reinterpret_cast<uint4*>(out)[i] = reinterpret_cast<const uint4*>(in)[i];
    }
  } else {
    for (int i = threadIdx.x % 32; i < dim; i += 32) out[i] = in[i];
  }
}
template <typename In, typename Out>
__device__ void CopyRow(const In* in, int dim, Out* out) {
  for (int i = threadIdx.x % 32; i < dim; i += 32) out[i] = FromFloat<Out>(ToFloat(in[i]));
}

template <typename Act, typename Cache>
__global__ void GatherKernel(const Cache* cache, const int32_t* block_tables, int dim, Act* out,
                             const __grid_constant__ PrefillPiece piece) {
  WaitForPrevious();
  // Not before: products fetch their weights before they wait for the kernel before them, and these
  // weights may be what WidenF8() has just written.
  AllowNext();
  const int key = blockIdx.x * kKeysPerBlock + threadIdx.x / 32;
  if (key >= piece.keys) return;
  const PrefillSegment& s = piece.segments[SegmentOfKey(piece, key)];
  const int64_t from = CacheRow(block_tables, s.row, s.key_begin + key - s.first_key);
  CopyRow(cache + from * dim, dim, out + static_cast<int64_t>(key) * dim);
}

template <typename Act, typename Cache>
void Gather(const MlaPrefillParams& p, const PrefillPiece& piece, void* out, CudaContext& context) {
  const int blocks = (piece.keys + kKeysPerBlock - 1) / kKeysPerBlock;
  Launch(GatherKernel<Act, Cache>, dim3(blocks), dim3(kThreads), 0, context,
         static_cast<const Cache*>(p.cache), p.rows.block_tables, p.latent_rank + p.rope_dim,
         static_cast<Act*>(out), piece);
  HADAL_CUDA_LAUNCHED();
}

}  // namespace

HeadsView::HeadsView(const PackedWeight& heads, int first, int count, CudaContext& context) {
  const auto& w = dynamic_cast<const CudaPackedWeight&>(heads);
  HADAL_CHECK(first + count <= w.count, "{} heads of {}", first + count, w.count);
  view_.n = count * w.n;
  view_.k = w.k;
  view_.stride = w.stride;
  if (w.dtype != DType::kF8E4M3) {
    view_.dtype = w.dtype;
    view_.data = w.matrix(first);
  } else {
    view_.dtype = context.act;
    void* out = context.scratch.Allocate<char>(view_.n * w.stride * DTypeSize(view_.dtype));
    WidenF8(w, first, count, view_.dtype, out, context);
    view_.data = out;
  }
  view_.bytes = view_.n * view_.stride * DTypeSize(view_.dtype);
}

int64_t HeadsView::ScratchBytes(int64_t heads, int64_t n, int64_t k, DType act) {
  return DeviceScratch::Aligned(heads * n * ((k + 15) / 16 * 16) * DTypeSize(act));
}

void GatherLatent(const MlaPrefillParams& p, const PrefillPiece& piece, void* out,
                  CudaContext& context) {
  const bool float_cache = p.cache_dtype == DType::kF32;
  if (context.act == DType::kF32) {
    float_cache ? Gather<float, float>(p, piece, out, context)
                : Gather<float, __nv_bfloat16>(p, piece, out, context);
  } else {
    float_cache ? Gather<__nv_bfloat16, float>(p, piece, out, context)
                : Gather<__nv_bfloat16, __nv_bfloat16>(p, piece, out, context);
  }
}

void ProjectUp(const MlaPrefillParams& p, int keys, const void* latent, const PackedWeight& w,
               void* y, CudaContext& context) {
  MatMulParams m;
  m.x = latent;
  m.x_stride = p.latent_rank + p.rope_dim;
  m.w = &w;
  m.y = y;
  m.y_stride = w.n;
  m.m = keys;
  MatMul(m, context);
}

}  // namespace hadal::cuda
