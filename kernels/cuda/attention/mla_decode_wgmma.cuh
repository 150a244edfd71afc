#pragma once

#include "kernels/cuda/attention/mla_decode_rows.cuh"
#include "kernels/cuda/attention/mla_wgmma.cuh"
#include "kernels/cuda/device/barrier.cuh"
#include "kernels/cuda/device/copy_async.cuh"
#include "kernels/cuda/device/hopper.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/shared.cuh"
#include "kernels/cuda/device/tensor_map.h"

// Shared memory of the decode kernel of 64 pairs, and how queries and tiles get there. Tiles are
// taken two at a time within a segment: the first into stage 0, the second, if there is one, into
// stage 1.

namespace hadal::cuda::decode64 {

inline constexpr int kRows = 64;
inline constexpr int kDim = kDecodeDim;
inline constexpr int kStages = 2;       // one for each warpgroup
inline constexpr int kConsumers = 256;  // threads
inline constexpr int kThreads = kConsumers + 128;
inline constexpr int kBoxes = kDim / 64;
inline constexpr int kRotaryBox = kBoxes - 1;
inline constexpr int kBoxBytes = 64 * 128;  // 64 columns of 64 rows
inline constexpr int kTileBytes = kBoxes * kBoxBytes;
inline constexpr int kProducer = kConsumers;  // its first thread

// A tile comes and goes in two parts. Warpgroup g makes the scores of the tile in stage g and keeps
// columns 256 g to 256 g + 255 of the output. Part 0 of stage g is these columns, which only that
// warpgroup reads; part 1 is the rest, which the other reads last: its half of the values, and the
// rotary columns, whose place then holds the tile's weights.
inline constexpr int kParts = 2;
__host__ __device__ constexpr int PartBoxes(int part) { return part == 0 ? 4 : kBoxes - 4; }
__host__ __device__ constexpr int BoxOfPart(int stage, int part, int i) {
  return i == 4 ? kRotaryBox : (stage ^ part) * 4 + i;
}

struct Shared {
  char queries[kTileBytes];
  char tiles[kStages][kTileBytes];
  float maxima[2][kRows], sums[2][kRows];  // of the warpgroups
  uint64_t full[kStages][kParts], empty[kStages][kParts];
  uint64_t weights[kStages];  // of the tile, and their maximum, are there
  int schedule[32];
  DecodeRun run;
  DecodeSegment segments[3];  // in turn; while some still store, thread 0 writes the one after next
};

// Parities of the stages' next tiles.
struct Phases {
  uint32_t stage[kStages] = {};
  __device__ __forceinline__ void Advance(bool both) {
    stage[0] ^= 1;
    stage[1] ^= both ? 1 : 0;
  }
};

#if HADAL_SM90A

__device__ __forceinline__ void SyncConsumers() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
}

template <int kPart>
__device__ __forceinline__ void ProducePart(const CUtensorMap& cache, int stage, int block,
                                            uint32_t parity, Shared& shared) {
  const uint32_t full = SharedAddress(&shared.full[stage][kPart]);
  PollBarrier(SharedAddress(&shared.empty[stage][kPart]), parity ^ 1);
  ArriveExpecting(full, PartBoxes(kPart) * kBoxBytes);
#pragma unroll 1
  for (int i = 0; i < PartBoxes(kPart); ++i) {
    const int box = BoxOfPart(stage, kPart, i);
    CopyTile(SharedAddress(shared.tiles[stage] + box * kBoxBytes), &cache, box * 64,
             block * kBlockSize, full);
  }
}

// One thread brings in all tiles of the run. Keys of earlier steps do not wait for the kernels
// before this one.
__device__ inline void Produce(const DecodeArgs& a, const CUtensorMap& cache, const DecodeRun& run,
                               Shared& shared) {
  DecodeItem item = LoadItem(a, run.item);
  Phases phases;
  int tile = run.tile, count;
  bool waited = false;
  for (int left = run.tiles; left > 0; left -= count, tile += count) {
    if (tile == item.tiles) {
      item = NextItem(a, item.index);
      tile = 0;
    }
    count = min(2, min(left, item.tiles - tile));
    const int32_t* blocks = a.p.rows.block_tables + item.row.first_block + tile;
    const int first = blocks[0], second = count == 2 ? blocks[1] : 0;
    if (!waited && (left < run.tiles || (tile + count) * kBlockSize > item.row.start_pos)) {
      WaitForPrevious();
      waited = true;
    }
    // In the order in which they are given back.
    ProducePart<0>(cache, 0, first, phases.stage[0], shared);
    ProducePart<1>(cache, 0, first, phases.stage[0], shared);
    if (count == 2) {
      ProducePart<0>(cache, 1, second, phases.stage[1], shared);
      ProducePart<1>(cache, 1, second, phases.stage[1], shared);
    }
    phases.Advance(count == 2);
  }
}

// Fetches the item's queries, all at once, in the layout that the copy engine would have given
// them. Eight threads take the boxes' 128 bytes of a row.
__device__ __forceinline__ void FetchQueries(const DecodeArgs& a, const DecodeItem& item,
                                             Shared& shared) {
  const int piece = threadIdx.x % 8;
#pragma unroll
  for (int row = threadIdx.x / 8; row < kRows; row += kConsumers / 8) {
    const QueryRow query(a, item, item.first + row);
    const uint32_t to = SharedAddress(shared.queries) + row * 128 + (piece ^ row % 8) * 16;
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      CopyAsync16(to + box * kBoxBytes, query.At(box * 64 + piece * 8), query.valid);
    }
  }
  CommitCopies();
}
__device__ __forceinline__ void AwaitQueries() {
  AwaitCopies<0>();
  FenceAsync();
  SyncConsumers();
}

// By all threads of a warpgroup, of which racecheck sees each.
__device__ __forceinline__ void Send(int stage, Shared& shared) {
  Arrive(SharedAddress(&shared.weights[stage]));
}
__device__ __forceinline__ void Await(int stage, Shared& shared, const Phases& phases) {
  PollBarrier(SharedAddress(&shared.weights[stage]), phases.stage[stage]);
}

__device__ __forceinline__ void WaitPart(int stage, int part, Shared& shared,
                                         const Phases& phases) {
  PollBarrier(SharedAddress(&shared.full[stage][part]), phases.stage[stage]);
}
__device__ __forceinline__ void ReleasePart(int stage, int part, Shared& shared) {
  ArriveForWarp(SharedAddress(&shared.empty[stage][part]));
}

// Rows that hold no key would bring NaNs into the products.
__device__ __forceinline__ void ClearBehind(int valid, int stage, Shared& shared,
                                            const Phases& phases) {
  for (int part = 0; part < kParts; ++part) WaitPart(stage, part, shared, phases);
  for (int i = threadIdx.x; i < (kBlockSize - valid) * kBoxes * 8; i += kConsumers) {
    const int row = valid + i / (kBoxes * 8), box = i / 8 % kBoxes;
    char* at = shared.tiles[stage] + box * kBoxBytes + row * 128 + i % 8 * 16;
    *reinterpret_cast<uint4*>(at) = make_uint4(0, 0, 0, 0);
  }
  FenceAsync();
  SyncConsumers();
}

#endif

}  // namespace hadal::cuda::decode64
