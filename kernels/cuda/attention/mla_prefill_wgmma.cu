#include "common/check.h"
#include "kernels/cuda/attention/mla_flash.cuh"
#include "kernels/cuda/attention/mla_wgmma.cuh"
#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/hopper.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/device/tensor_map.h"

// Flash attention on Hopper: 128 queries of one head by two warpgroups, tiles of 128 keys brought
// in by a third one's copy engine, two stages. A warpgroup's scores of one tile are made while the
// values of the tile before are added, and its softmax runs under the other's products.

namespace hadal::cuda {
namespace {

using namespace flash;

constexpr int kKeys = 128;
constexpr int kStages = 2;
constexpr int kConsumers = 2;  // warpgroups
constexpr int kThreads = 128 * (1 + kConsumers);
constexpr int kBoxBytes = 128 * 128;  // 64 columns of 128 rows
constexpr int kQkBoxes = kQk / 64;
constexpr int kVBoxes = kV / 64;

struct Shared {
  char queries[kQkBoxes][kBoxBytes];
  char keys[kStages][kQkBoxes][kBoxBytes];
  char values[kStages][kVBoxes][kBoxBytes];
  uint64_t queries_full;
  uint64_t keys_full[kStages], keys_empty[kStages];
  uint64_t values_full[kStages], values_empty[kStages];
};

struct Maps {
  CUtensorMap q, k, k_rope, v;
};

#if HADAL_SM90A

// Stage and parity of the next tile.
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void Advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

__device__ void InitBarriers(Shared& shared) {
  BarrierInit(SharedAddress(&shared.queries_full), 1);
  for (int i = 0; i < kStages; ++i) {
    BarrierInit(SharedAddress(&shared.keys_full[i]), 1);
    BarrierInit(SharedAddress(&shared.values_full[i]), 1);
    BarrierInit(SharedAddress(&shared.keys_empty[i]), kConsumers * 4);
    BarrierInit(SharedAddress(&shared.values_empty[i]), kConsumers * 4);
  }
  FenceAsync();
}

// One thread.
__device__ void Produce(const Work& w, const Maps& maps, Shared& shared) {
  const uint32_t queries_full = SharedAddress(&shared.queries_full);
  ArriveExpecting(queries_full, kQkBoxes * kBoxBytes);
  for (int b = 0; b < kQkBoxes; ++b) {
    CopyTile(SharedAddress(shared.queries[b]), &maps.q, w.head * kQk + b * 64,
             static_cast<int>(w.Token(w.first)), queries_full);
  }
  Ring ring;
  for (int key = 0; key < w.keys; key += kKeys, ring.Advance()) {
    const int stage = ring.stage, row = w.s.first_key + key;
    const uint32_t keys = SharedAddress(&shared.keys_full[stage]);
    PollBarrier(SharedAddress(&shared.keys_empty[stage]), ring.parity ^ 1);
    ArriveExpecting(keys, kQkBoxes * kBoxBytes);
    CopyTile(SharedAddress(shared.keys[stage][0]), &maps.k, w.head * kNope, row, keys);
    CopyTile(SharedAddress(shared.keys[stage][1]), &maps.k, w.head * kNope + 64, row, keys);
    CopyTile(SharedAddress(shared.keys[stage][2]), &maps.k_rope, 0, row, keys);
    const uint32_t values = SharedAddress(&shared.values_full[stage]);
    PollBarrier(SharedAddress(&shared.values_empty[stage]), ring.parity ^ 1);
    ArriveExpecting(values, kVBoxes * kBoxBytes);
    CopyTile(SharedAddress(shared.values[stage][0]), &maps.v, w.head * kV, row, values);
    CopyTile(SharedAddress(shared.values[stage][1]), &maps.v, w.head * kV + 64, row, values);
  }
}

// Starts s = queries keys^T; `queries`: of the warpgroup.
__device__ __forceinline__ void StartScores(uint32_t queries, uint32_t keys, float (&s)[16][4]) {
#pragma unroll
  for (int k = 0; k < kQk / 16; ++k) {
    const uint32_t at = k / 4 * kBoxBytes + k % 4 * 32;
    WgmmaRows128(s, TileDescriptor(queries + at), TileDescriptor(keys + at), k > 0);
  }
  CommitProducts();
}

// Starts o += weights values.
__device__ __forceinline__ void StartValues(const uint32_t (&weights)[kKeys / 16][4],
                                            uint32_t values, float (&o)[16][4]) {
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
    WgmmaColumns128(o, weights[k], ColumnsDescriptor(values + k * 2048, kBoxBytes));
  }
  CommitProducts();
}

__device__ __forceinline__ void Release(uint64_t& empty) {
  if (threadIdx.x % 32 == 0) Arrive(SharedAddress(&empty));
}

// Whether some query of the tile may not see all of the keys key .. key + kKeys of the segment.
__device__ __forceinline__ bool NeedsMask(const Work& w, int key) {
  return key + kKeys > min(w.Sees(w.first), w.s.key_end) - w.s.key_begin;
}

__device__ void Consume(const PrefillArgs& p, const Work& w, Shared& shared) {
  const int group = threadIdx.x / 128 - 1;
  const int query = w.first + group * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  RowState state;
  float o[16][4], s[16][4] = {}, alpha[2];
  uint32_t weights[kKeys / 16][4];
  Begin(p, w, query, state, o);
  const uint32_t queries = SharedAddress(shared.queries) + group * 64 * 128;
  const auto softmax = [&](int key) {
    if (NeedsMask(w, key)) Mask(key, state, s);
    Weights(p.scale_log2, s, state, alpha);
  };
  const auto rescale = [&] {
    Rescale(alpha, o);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) PackWeights(s, k, weights[k]);
    KeepAll(o);
    KeepAll(weights);
    KeepAll(s);
  };
  Ring keys, values;
  PollBarrier(SharedAddress(&shared.queries_full), 0);
  PollBarrier(SharedAddress(&shared.keys_full[0]), 0);
  KeepAll(s);
  BeginProducts();
  StartScores(queries, SharedAddress(shared.keys[0]), s);
  AwaitProducts<0>();
  KeepAll(s);
  Release(shared.keys_empty[0]);
  softmax(0);
  rescale();
  for (int key = kKeys; key < w.keys; key += kKeys) {
    keys.Advance();
    PollBarrier(SharedAddress(&shared.keys_full[keys.stage]), keys.parity);
    BeginProducts();
    StartScores(queries, SharedAddress(shared.keys[keys.stage]), s);
    PollBarrier(SharedAddress(&shared.values_full[values.stage]), values.parity);
    BeginProducts();
    StartValues(weights, SharedAddress(shared.values[values.stage]), o);
    AwaitProducts<1>();
    KeepAll(s);
    Release(shared.keys_empty[keys.stage]);
    softmax(key);
    AwaitProducts<0>();
    KeepAll(o);
    KeepAll(weights);
    Release(shared.values_empty[values.stage]);
    values.Advance();
    rescale();
  }
  PollBarrier(SharedAddress(&shared.values_full[values.stage]), values.parity);
  BeginProducts();
  StartValues(weights, SharedAddress(shared.values[values.stage]), o);
  AwaitProducts<0>();
  KeepAll(o);
  End(p, w, query, state, o);
}

#endif

__global__ void __launch_bounds__(kThreads, 1)
    WgmmaPrefillKernel(const __grid_constant__ PrefillArgs p,
                       const __grid_constant__ PrefillPiece piece,
                       const __grid_constant__ Maps maps) {
#if HADAL_SM90A
  extern __shared__ char memory[];
  Shared& shared =
      *reinterpret_cast<Shared*>(memory + ((1024 - SharedAddress(memory) % 1024) % 1024));
  AllowNext();
  if (threadIdx.x == 0) InitBarriers(shared);
  __syncthreads();
  WaitForPrevious();
  const Work w(p, piece, blockIdx.x);
  if (w.keys <= 0) return;
  if (threadIdx.x < 128) {
    GiveRegisters<24>();
    if (threadIdx.x == 0) Produce(w, maps, shared);
  } else {
    TakeRegisters<240>();
    Consume(p, w, shared);
  }
#endif
}

constexpr int kSharedBytes = sizeof(Shared) + 1024;

}  // namespace

bool WgmmaPrefillAllowed(const MlaPrefillParams& p, const CudaContext& context) {
  return context.arch == 90 && MmaPrefillAllowed(p, context);
}

int WgmmaPrefillTile() { return kQueries; }

void WgmmaPrefillPiece(const PrefillArgs& args, const PrefillPiece& piece, CudaContext& context) {
  static const bool allowed = [] {
    HADAL_CUDA(cudaFuncSetAttribute(WgmmaPrefillKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    kSharedBytes));
    return true;
  }();
  HADAL_CHECK(allowed);
  const int64_t heads = args.group_heads;
  const int64_t tokens = piece.segments[piece.count - 1].row.first_token +
                         piece.segments[piece.count - 1].row.num_tokens;
  Maps maps;
  maps.q = TensorMap2d(args.q, heads * kQk, tokens, args.q_stride * 2, kQueries);
  maps.k = TensorMap2d(args.k, heads * kNope, piece.keys, heads * kNope * 2, kKeys);
  maps.v = TensorMap2d(args.v, heads * kV, piece.keys, heads * kV * 2, kKeys);
  maps.k_rope = TensorMap2d(args.k_rope, kRope, piece.keys, args.k_rope_stride * 2, kKeys);
  Launch(WgmmaPrefillKernel, dim3(static_cast<unsigned>(piece.tiles * heads)), dim3(kThreads),
         kSharedBytes, context, args, piece, maps);
  HADAL_CUDA_LAUNCHED();
}

}  // namespace hadal::cuda
