#pragma once

#include "kernels/cuda/attention/mla_decode_rows.cuh"
#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/hopper.cuh"
#include "kernels/cuda/device/shared.cuh"

// Shared memory of the decode kernel of 16 pairs, and how queries and tiles get there.

namespace hadal::cuda::decode16 {

inline constexpr int kRows = 16;
inline constexpr int kDim = kDecodeDim;
inline constexpr int kHalfBytes = kDim;  // of a row: a warp makes products of half of the columns
inline constexpr int kSteps = kDim / 2 / 16;  // in each of which
inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kMaxStages = 3;
inline constexpr int kPitch = kDim * 2 + 16;  // bytes; rows of a tile start in different banks
inline constexpr int kStageBytes = kBlockSize * kPitch;
inline constexpr int kQueryBytes = kRows * kPitch;
inline constexpr int kWeightPitch = kBlockSize * 2 + 16;

struct Shared {
  char weights[kRows * kWeightPitch];
  float of_warp[kWarps][kRows];
  float4 scores[kWarps][32];  // of half of the columns, for another warp
  uint64_t full[kMaxStages];
  int schedule[32];
  DecodeRun run;
  DecodeSegment segment;                              // thread 0 writes it between two barriers
  alignas(128) char stages[kMaxStages][kStageBytes];  // the last ones of which there may not be
};

// Stage and parity of the next tile. One stage, the one before it, is empty between segments.
struct Ring {
  int stages;
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ int Empty() const { return stage == 0 ? stages - 1 : stage - 1; }
  __device__ __forceinline__ void Advance() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// Brings the run's tiles into the stages, one after the other: keys of earlier steps (old), of this
// one, or both. All threads keep the same state, each warp copies its 8 keys.
template <bool kManyItems>
struct Producer {
  int item;
  int old;  // keys
  int first_block;
  int keys, tiles, tile;
  int left;   // tiles not yet on their way
  int block;  // of the next tile

  __device__ __forceinline__ void Enter(const DecodeItem& next) {
    item = next.index;
    old = next.row.start_pos;
    first_block = next.row.first_block;
    keys = next.keys;
    tiles = next.tiles;
  }
  __device__ __forceinline__ void LoadBlock(const DecodeArgs& a) {
    if (left > 0) block = a.p.rows.block_tables[first_block + tile];
  }
  template <bool kOld, bool kNew>
  __device__ __forceinline__ void Issue(const DecodeArgs& a, Shared& shared, int stage) {
    if (left == 0) return;
    const int valid = min(kBlockSize, keys - tile * kBlockSize);
    const uint32_t barrier = SharedAddress(&shared.full[stage]);
    if (kOld && threadIdx.x == 0) ArriveExpecting(barrier, valid * kDim * 2);
    const int lane = threadIdx.x % 32, key = threadIdx.x / 32 * 8 + lane;
    if (lane < 8 && key < valid && (tile * kBlockSize + key < old ? kOld : kNew)) {
      const char* from = static_cast<const char*>(a.p.cache) +
                         (static_cast<int64_t>(block) * kBlockSize + key) * (kDim * 2);
      BulkCopy(SharedAddress(shared.stages[stage] + key * kPitch), from, kDim * 2, barrier);
    }
    --left;
    ++tile;
    if (kManyItems && left > 0 && tile == tiles) {
      Enter(NextItem(a, item));
      tile = 0;
    }
    LoadBlock(a);
  }
};

// The item's queries, 16 bytes at a time: columns piece * 8 .. of row threadIdx.x / 16.
inline constexpr int kQueryPieces = (kDim / 8 + 15) / 16;
__device__ __forceinline__ int QueryPiece(int i) { return i * 16 + threadIdx.x % 16; }
__device__ __forceinline__ QueryRow QueryOfThread(const DecodeArgs& a, const DecodeItem& item) {
  return QueryRow(a, item, item.first + threadIdx.x / 16);
}
__device__ __forceinline__ void FetchQueries(const QueryRow& query, uint4 (&pieces)[kQueryPieces]) {
#pragma unroll
  for (int i = 0; i < kQueryPieces; ++i) {
    const int column = QueryPiece(i) * 8;
    pieces[i] = query.valid && column < kDim ? *reinterpret_cast<const uint4*>(query.At(column))
                                             : make_uint4(0, 0, 0, 0);
  }
}
// These as fragments of the warp's half of the columns, through a place that holds no tile. Who
// fills it by copies behind the next barrier calls FenceAsync() before.
__device__ __forceinline__ void SpreadQueries(char* place, const uint4 (&pieces)[kQueryPieces],
                                              uint32_t (&q)[kSteps][4]) {
#pragma unroll
  for (int i = 0; i < kQueryPieces; ++i) {
    if (QueryPiece(i) >= kDim / 8) break;
    *reinterpret_cast<uint4*>(place + threadIdx.x / 16 * kPitch + QueryPiece(i) * 16) = pieces[i];
  }
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t from =
      SharedAddress(place + lane % 16 * kPitch + warp % 2 * kHalfBytes + lane / 16 * 16);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) LoadMatrices(from + k * 32, q[k]);
}

#endif

}  // namespace hadal::cuda::decode16
