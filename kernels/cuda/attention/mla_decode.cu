#include <algorithm>

#include "common/check.h"
#include "kernels/cuda/attention/mla.cuh"
#include "kernels/cuda/attention/mla_general.cuh"
#include "kernels/cuda/attention/ops.h"
#include "kernels/cuda/device/convert.cuh"
#include "kernels/cuda/device/launch.cuh"

// The general path of the absorbed form, and the choice between paths. One warp takes one query,
// one head and one of `splits` pieces of the keys; a second kernel merges the pieces.

namespace hadal::cuda {
namespace {

constexpr int kMaxParts = 4096;  // (query, head, split); splits only while they are this few
constexpr int kMinKeysPerSplit = 64;
constexpr int kMergeThreads = 128;

struct Parts {
  int splits = 1;
  float* o = nullptr;    // [query, head, split, latent_rank]
  float2* ml = nullptr;  // [query, head, split]
};

template <typename Act>
__device__ void ReadQuery(const MlaDecodeParams& p, int token, int head, float* q) {
  const Act* latent = static_cast<const Act*>(p.q_latent) +
                      (static_cast<int64_t>(token) * p.heads + head) * p.latent_rank;
  const Act* rope =
      static_cast<const Act*>(p.q_rope) + token * p.q_rope_stride + head * p.q_rope_head_stride;
  for (int i = threadIdx.x; i < p.latent_rank; i += 32) q[i] = ToFloat(latent[i]);
  for (int i = threadIdx.x; i < p.rope_dim; i += 32) q[p.latent_rank + i] = ToFloat(rope[i]);
}

// Grid: (query slot, head, split); query slot = row * max_row_tokens + query of the row.
template <typename Act, typename Cache>
__global__ void GeneralDecodeKernel(MlaDecodeParams p, Parts parts) {
  extern __shared__ float shared[];  // q, o, weights
  AllowNext();
  WaitForPrevious();
  const AttentionRow row = p.rows.rows[blockIdx.x / p.rows.max_row_tokens];
  const int query = blockIdx.x % p.rows.max_row_tokens;
  if (query >= row.num_tokens) return;
  const int token = row.first_token + query, head = blockIdx.y;
  float* q = shared;
  float* o = q + p.latent_rank + p.rope_dim;
  ReadQuery<Act>(p, token, head, q);
  for (int d = threadIdx.x; d < p.latent_rank; d += 32) o[d] = 0;
  __syncwarp();
  const int64_t keys = static_cast<int64_t>(row.start_pos) + query + 1;
  const int begin = static_cast<int>(keys * blockIdx.z / parts.splits);
  const int end = static_cast<int>(keys * (blockIdx.z + 1) / parts.splits);
  const LatentKeys<Cache> latent_keys{static_cast<const Cache*>(p.cache), p.rows.block_tables, row,
                                      p.latent_rank, p.rope_dim};
  SoftmaxState state;
  WarpAttend(latent_keys, begin, end, q, p.latent_rank, p.rope_dim, p.latent_rank, p.scale * kLog2E,
             o, o + p.latent_rank, state);
  if (parts.splits == 1) {
    Act* out =
        static_cast<Act*>(p.out) + (static_cast<int64_t>(token) * p.heads + head) * p.latent_rank;
    for (int d = threadIdx.x; d < p.latent_rank; d += 32) out[d] = FromFloat<Act>(o[d] / state.l);
    return;
  }
  const int64_t part =
      (static_cast<int64_t>(blockIdx.x) * p.heads + head) * parts.splits + blockIdx.z;
  for (int d = threadIdx.x; d < p.latent_rank; d += 32) parts.o[part * p.latent_rank + d] = o[d];
  if (threadIdx.x == 0) parts.ml[part] = make_float2(state.m, state.l);
}

// Grid: (query slot, head).
template <typename Act>
__global__ void GeneralMergeKernel(MlaDecodeParams p, Parts parts) {
  AllowNext();
  WaitForPrevious();
  const AttentionRow row = p.rows.rows[blockIdx.x / p.rows.max_row_tokens];
  const int query = blockIdx.x % p.rows.max_row_tokens;
  if (query >= row.num_tokens) return;
  const int64_t part = (static_cast<int64_t>(blockIdx.x) * p.heads + blockIdx.y) * parts.splits;
  float m = -INFINITY, l = 0;
  for (int s = 0; s < parts.splits; ++s) m = fmaxf(m, parts.ml[part + s].x);
  for (int s = 0; s < parts.splits; ++s)
    l += parts.ml[part + s].y * ExpDiff(parts.ml[part + s].x, m);
  Act* out = static_cast<Act*>(p.out) +
             (static_cast<int64_t>(row.first_token + query) * p.heads + blockIdx.y) * p.latent_rank;
  for (int d = threadIdx.x; d < p.latent_rank; d += kMergeThreads) {
    float sum = 0;
    for (int s = 0; s < parts.splits; ++s) {
      sum += parts.o[(part + s) * p.latent_rank + d] * ExpDiff(parts.ml[part + s].x, m);
    }
    out[d] = FromFloat<Act>(sum / l);
  }
}

template <typename Act, typename Cache>
void GeneralDecode(const MlaDecodeParams& p, CudaContext& context) {
  DeviceScratch::Scope scope(context.scratch);
  const int64_t slots = static_cast<int64_t>(p.rows.num_rows) * p.rows.max_row_tokens;
  Parts parts;
  parts.splits = static_cast<int>(std::clamp<int64_t>(
      kMaxParts / (slots * p.heads), 1, (p.rows.max_context - 1) / kMinKeysPerSplit + 1));
  const int64_t count = parts.splits == 1 ? 0 : slots * p.heads * parts.splits;
  parts.o = context.scratch.Allocate<float>(count * p.latent_rank);
  parts.ml = context.scratch.Allocate<float2>(count);
  const auto shared = (2 * p.latent_rank + p.rope_dim + 32) * sizeof(float);
  HADAL_CHECK(shared <= 48 * 1024, "latent rank {}", p.latent_rank);
  Launch(GeneralDecodeKernel<Act, Cache>, dim3(slots, p.heads, parts.splits), dim3(32), shared,
         context, p, parts);
  HADAL_CUDA_LAUNCHED();
  if (parts.splits == 1) return;
  Launch(GeneralMergeKernel<Act>, dim3(slots, p.heads), dim3(kMergeThreads), 0, context, p, parts);
  HADAL_CUDA_LAUNCHED();
}

bool Aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// What the fast kernels ask for; that of wgmma runs on no other architecture.
bool Allowed(MlaPath path, const MlaDecodeParams& p, const CudaContext& context) {
  if (path == MlaPath::kGeneral) return true;
  return (path == MlaPath::kWgmma ? context.arch == 90 : context.arch >= 90) &&
         context.act == DType::kBF16 && p.cache_dtype == DType::kBF16 && p.latent_rank == 512 &&
         p.rope_dim == 64 && Aligned16(p.cache) && Aligned16(p.q_latent) && Aligned16(p.q_rope) &&
         Aligned16(p.out) && p.q_rope_stride % 8 == 0 && p.q_rope_head_stride % 8 == 0;
}

// Up to 16 (query, head) pairs per row the small tiles of mma.sync waste nothing; of more, every 16
// read the keys again, which few rows may: 128 heads, 8 x 512 and 16 x 512 keys take 13 and 21 us
// in clusters, 22 and 22 otherwise (H200).
MlaPath Choose(const MlaDecodeParams& p, const CudaContext& context) {
  if (!Allowed(MlaPath::kMma, p, context)) return MlaPath::kGeneral;
  const bool many = p.rows.max_row_tokens * p.heads > 16 && Allowed(MlaPath::kWgmma, p, context);
  if (ClustersPay(p, DecodeCluster(p), context)) return MlaPath::kCluster;
  return many ? MlaPath::kWgmma : MlaPath::kMma;
}

}  // namespace

void MlaDecodeWith(MlaPath path, const MlaDecodeParams& p, CudaContext& context) {
  HADAL_CHECK(p.cache_dtype != DType::kF8E4M3, "the latent cache is bf16 or f32");
  if (p.rows.num_rows == 0 || p.rows.max_row_tokens == 0 || p.heads == 0) return;
  if (path == MlaPath::kAuto) path = Choose(p, context);
  HADAL_CHECK(Allowed(path, p, context));
  if (path == MlaPath::kWgmma) return WgmmaDecode(p, context);
  if (path == MlaPath::kMma) return MmaDecode(p, context);
  if (path == MlaPath::kCluster) return ClusterDecode(p, context);
  const bool float_cache = p.cache_dtype == DType::kF32;
  if (context.act == DType::kF32) {
    float_cache ? GeneralDecode<float, float>(p, context)
                : GeneralDecode<float, __nv_bfloat16>(p, context);
  } else {
    float_cache ? GeneralDecode<__nv_bfloat16, float>(p, context)
                : GeneralDecode<__nv_bfloat16, __nv_bfloat16>(p, context);
  }
}

void MlaDecode(const MlaDecodeParams& p, CudaContext& context) {
  MlaDecodeWith(MlaPath::kAuto, p, context);
}

int64_t DecodeScratchBytes(const OpLimits& limits) {
  const int64_t general = DeviceScratch::Aligned(int64_t{kMaxParts} * limits.latent_rank * 4) +
                          DeviceScratch::Aligned(int64_t{kMaxParts} * 8);
  return std::max({general, MmaDecodeScratchBytes(), WgmmaDecodeScratchBytes()});
}

}  // namespace hadal::cuda
