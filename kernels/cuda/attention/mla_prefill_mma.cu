#include "common/check.h"
#include "kernels/cuda/attention/mla_flash.cuh"
#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device/shared.cuh"

// Flash attention of the projected keys and values, head dims 128 + 64 and 128, bf16. A CTA takes
// 128 queries of one head, a warp 16 of them; tiles of 64 keys arrive in the background.

namespace hadal::cuda {
namespace {

using namespace flash;

constexpr int kThreads = 256;
constexpr int kKeys = 64;
constexpr int kSteps = kQk / 16;
constexpr int kQkPitch = kQk * 2 + 16;  // bytes; neighbouring rows start in different banks
constexpr int kVPitch = kV * 2 + 16;

struct Tile {
  char keys[kKeys * kQkPitch];
  char values[kKeys * kVPitch];
};
struct Shared {
  Tile tiles[2];
  char queries[kQueries * kQkPitch];
};

__device__ void CopyQueries(const PrefillArgs& p, const Work& w, char* to) {
  constexpr int kPieces = kQk / 8;
  for (int i = threadIdx.x; i < kQueries * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const bool valid = w.first + row < w.s.row.num_tokens;
    const auto* from = static_cast<const __nv_bfloat16*>(p.q) +
                       (valid ? w.Token(w.first + row) * p.q_stride + w.head * kQk + piece * 8 : 0);
    CopyAsync16(SharedAddress(to + row * kQkPitch + piece * 16), from, valid);
  }
}

// 8 * kPieces columns of the keys of a tile, from rows `stride` apart.
template <int kPieces>
__device__ __forceinline__ void CopyKeys(const void* from, int64_t stride, int valid, char* to,
                                         int pitch) {
#pragma unroll
  for (int i = threadIdx.x; i < kKeys * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const auto* at = static_cast<const __nv_bfloat16*>(from) + min(row, valid - 1) * stride;
    CopyAsync16(SharedAddress(to + row * pitch + piece * 16), at + piece * 8, row < valid);
  }
}

__device__ __forceinline__ void FetchTile(const PrefillArgs& p, const Work& w, int key, Tile& to) {
  const int valid = min(kKeys, w.keys - key);
  const int64_t row = w.s.first_key + key;
  const auto* k = static_cast<const __nv_bfloat16*>(p.k);
  const auto* v = static_cast<const __nv_bfloat16*>(p.v);
  const auto* rope = static_cast<const __nv_bfloat16*>(p.k_rope) + row * p.k_rope_stride;
  const int64_t at = row * p.group_heads + w.head;
  CopyKeys<kNope / 8>(k + at * kNope, p.group_heads * kNope, valid, to.keys, kQkPitch);
  CopyKeys<kRope / 8>(rope, p.k_rope_stride, valid, to.keys + kNope * 2, kQkPitch);
  CopyKeys<kV / 8>(v + at * kV, p.group_heads * kV, valid, to.values, kVPitch);
}

__device__ __forceinline__ void Scores(const char* keys, const uint32_t (&q)[kSteps][4],
                                       float (&s)[8][4]) {
  const int lane = threadIdx.x % 32;
  const uint32_t from =
      SharedAddress(keys + (lane / 16 * 8 + lane % 8) * kQkPitch + lane / 8 % 2 * 16);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      uint32_t b[4];
      LoadMatrices(from + n * 8 * kQkPitch + k * 32, b);
      MmaBf16(s[n], q[k], b[0], b[1]);
      MmaBf16(s[n + 1], q[k], b[2], b[3]);
    }
  }
}

__device__ __forceinline__ void AddValues(const char* values, const float (&s)[8][4],
                                          float (&o)[16][4]) {
  const int lane = threadIdx.x % 32;
  const uint32_t from = SharedAddress(values + lane % 16 * kVPitch + lane / 16 * 16);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t p[4];
    PackWeights(s, k, p);
#pragma unroll
    for (int n = 0; n < 16; n += 2) {
      uint32_t b[4];
      LoadMatricesTransposed(from + k * 16 * kVPitch + n * 16, b);
      MmaBf16(o[n], p, b[0], b[1]);
      MmaBf16(o[n + 1], p, b[2], b[3]);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    MmaPrefillKernel(const __grid_constant__ PrefillArgs p,
                     const __grid_constant__ PrefillPiece piece) {
  extern __shared__ __align__(128) char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  AllowNext();
  WaitForPrevious();
  const Work w(p, piece, blockIdx.x);
  if (w.keys <= 0) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  CopyQueries(p, w, shared.queries);
  FetchTile(p, w, 0, shared.tiles[0]);
  CommitCopies();
  const int query = w.first + warp * 16 + lane / 4;
  RowState state;
  float o[16][4];
  Begin(p, w, query, state, o);
  AwaitCopies<0>();
  __syncthreads();
  uint32_t q[kSteps][4];
  const uint32_t q_from =
      SharedAddress(shared.queries + (warp * 16 + lane % 16) * kQkPitch + lane / 16 * 16);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) LoadMatrices(q_from + k * 32, q[k]);
  // The first key that a query of the tile might not see.
  const int masked = w.Sees(w.first) - w.s.key_begin;
  for (int key = 0, i = 0; key < w.keys; key += kKeys, i ^= 1) {
    if (key + kKeys < w.keys) FetchTile(p, w, key + kKeys, shared.tiles[i ^ 1]);
    CommitCopies();
    float s[8][4] = {};
    Scores(shared.tiles[i].keys, q, s);
    if (key + kKeys > masked || key + kKeys > w.keys) Mask(key, state, s);
    float alpha[2];
    Weights(p.scale_log2, s, state, alpha);
    Rescale(alpha, o);
    AddValues(shared.tiles[i].values, s, o);
    AwaitCopies<0>();
    __syncthreads();
  }
  End(p, w, query, state, o);
}

bool Aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

bool MmaPrefillAllowed(const MlaPrefillParams& p, const CudaContext& context) {
  return context.arch >= 80 && context.act == DType::kBF16 && p.nope_dim == kNope &&
         p.rope_dim == kRope && p.v_dim == kV && p.latent_rank % 8 == 0 && p.q_stride % 8 == 0 &&
         Aligned16(p.q) && Aligned16(p.out);
}

int MmaPrefillTile() { return kQueries; }

void MmaPrefillPiece(const PrefillArgs& args, const PrefillPiece& piece, CudaContext& context) {
  static const bool allowed = [] {
    HADAL_CUDA(cudaFuncSetAttribute(MmaPrefillKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    sizeof(Shared)));
    return true;
  }();
  HADAL_CHECK(allowed);
  Launch(MmaPrefillKernel, dim3(piece.tiles * args.group_heads), dim3(kThreads), sizeof(Shared),
         context, args, piece);
  HADAL_CUDA_LAUNCHED();
}

}  // namespace hadal::cuda
