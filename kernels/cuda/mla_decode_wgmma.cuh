#pragma once

#include "kernels/cuda/mla_schedule.cuh"
#include "kernels/cuda/mla_wgmma.cuh"
#include "kernels/cuda/tensor_map.h"

// Shared memory of the decode kernel of 64 pairs, and how queries and tiles get there.

namespace hadal::cuda::decode64 {

inline constexpr int kRows = 64;
inline constexpr int kDim = kDecodeDim;
inline constexpr int kStages = 2;
inline constexpr int kConsumers = 256;  // threads
inline constexpr int kThreads = kConsumers + 128;
inline constexpr int kBoxes = kDim / 64;
inline constexpr int kBoxBytes = 64 * 128;  // 64 columns of 64 rows
inline constexpr int kTileBytes = kBoxes * kBoxBytes;
inline constexpr int kProducer = kConsumers;  // its first thread

// A tile comes and goes in two parts: the columns that warpgroup 0 and 1 keep of the output, the
// second with the rotary columns.
inline constexpr int kParts = 2;
__host__ __device__ constexpr int FirstBox(int part) { return part < kParts ? part * 4 : kBoxes; }

// What one warpgroup tells the other, in this order for every tile.
enum class Signal { kFirstMaximum, kSecondMaximum, kFirstWeights, kSecondWeights, kCount };

struct Shared {
  char queries[kTileBytes];
  char tiles[kStages][kTileBytes];
  char weights[kBoxBytes];
  float of_group[2][kRows];
  uint64_t full[kStages][kParts], empty[kStages][kParts];
  uint64_t signal[static_cast<int>(Signal::kCount)];
  int schedule[32];
  DecodeRun run;
  DecodeSegment segment;  // thread 0 writes it between two barriers
};

#if HADAL_SM90A

using Ring = DecodeRing<kStages>;

__device__ __forceinline__ void SyncConsumers() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
}

// One thread brings in all tiles of the run.
__device__ inline void Produce(const DecodeArgs& a, const CUtensorMap& cache, const DecodeRun& run,
                               Shared& shared) {
  DecodeItem item = LoadItem(a, run.item);
  Ring ring;
  int tile = run.tile;
  int block = a.p.rows.block_tables[item.row.first_block + tile];
  for (int left = run.tiles; left > 0; --left, ring.Advance()) {
    for (int part = 0; part < kParts; ++part) {
      const uint32_t full = SharedAddress(&shared.full[ring.stage][part]);
      const int first = FirstBox(part), end = FirstBox(part + 1);
      BarrierWait(SharedAddress(&shared.empty[ring.stage][part]), ring.parity ^ 1);
      BarrierArriveExpect(full, (end - first) * kBoxBytes);
      for (int b = first; b < end; ++b) {
        CopyBox(SharedAddress(shared.tiles[ring.stage] + b * kBoxBytes), &cache, b * 64,
                block * kBlockSize, full);
      }
    }
    if (left == 1) break;
    if (++tile == item.tiles) {
      item = NextItem(a, item.index);
      tile = 0;
    }
    block = a.p.rows.block_tables[item.row.first_block + tile];
  }
}

// The item's queries in the layout that the copy engine would have given them.
__device__ inline void LoadQueries(const DecodeArgs& a, const DecodeItem& item, Shared& shared) {
  constexpr int kPieces = kDim / 8;
#pragma unroll 6
  for (int i = threadIdx.x; i < kRows * kPieces; i += kConsumers) {
    const int row = i / kPieces, piece = i % kPieces;
    const uint4 x = LoadQuery(a, item, item.first + row, piece * 8);
    char* box = shared.queries + piece / 8 * kBoxBytes + row * 128;
    *reinterpret_cast<uint4*>(box + (piece % 8 ^ row % 8) * 16) = x;
  }
  FenceAsync();
  SyncConsumers();
}

// Once for every tile, by all threads of a warpgroup, of which racecheck sees each.
__device__ __forceinline__ void Send(Signal signal, Shared& shared) {
  BarrierArrive(SharedAddress(&shared.signal[static_cast<int>(signal)]));
}
__device__ __forceinline__ void Await(Signal signal, Shared& shared, const Ring& ring) {
  static_assert(kStages == 2);  // so that the stage changes as often as a signal's parity
  BarrierWait(SharedAddress(&shared.signal[static_cast<int>(signal)]), ring.stage);
}

__device__ __forceinline__ void WaitPart(int part, Shared& shared, const Ring& ring) {
  BarrierWait(SharedAddress(&shared.full[ring.stage][part]), ring.parity);
}
__device__ __forceinline__ void ReleasePart(int part, Shared& shared, const Ring& ring) {
  if (threadIdx.x % 32 == 0) BarrierArrive(SharedAddress(&shared.empty[ring.stage][part]));
}

// Rows that hold no key would bring NaNs into the products.
__device__ __forceinline__ void ClearBehind(int valid, Shared& shared, const Ring& ring) {
  for (int part = 0; part < kParts; ++part) WaitPart(part, shared, ring);
  for (int i = threadIdx.x; i < (kBlockSize - valid) * kBoxes * 8; i += kConsumers) {
    const int row = valid + i / (kBoxes * 8), box = i / 8 % kBoxes;
    char* at = shared.tiles[ring.stage] + box * kBoxBytes + row * 128 + i % 8 * 16;
    *reinterpret_cast<uint4*>(at) = make_uint4(0, 0, 0, 0);
  }
  FenceAsync();
  SyncConsumers();
}

#endif

}  // namespace hadal::cuda::decode64
