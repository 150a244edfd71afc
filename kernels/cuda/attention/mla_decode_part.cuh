#pragma once

#include <algorithm>

#include "kernels/cuda/attention/mla_decode_tiles.cuh"
#include "kernels/cuda/device/barrier.cuh"

// What a CTA does with an equal part of the keys of an item of 16 pairs, but for where the result
// goes.

namespace hadal::cuda::decode16 {

// Stages for tiles; of these that are filled before the queries come, which take the place behind
// them.
struct Stages {
  int tiles, ahead;
};
// `most` tiles in flight.
constexpr Stages StagesOf(int most, int64_t tiles) {
  const int stages = static_cast<int>(std::min<int64_t>(tiles, most));
  return {stages, std::min(stages, kMaxStages - 1)};
}
// Shared memory: what is behind the queries begins at QueriesOf() + kQueryBytes.
constexpr int PartBytes(Stages stages) {
  const int queries = stages.ahead < stages.tiles ? kStageBytes : kQueryBytes;
  return static_cast<int>(sizeof(Shared)) - (kMaxStages - stages.ahead) * kStageBytes + queries;
}
__device__ __forceinline__ char* QueriesOf(Shared& shared, Stages stages) {
  return shared.stages[stages.ahead];
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// The index-th part of all; those of an item are neighbours.
struct Part {
  DecodeItem item;
  int tile, tiles;
  int parts;  // of the item, that have tiles

  // An item has so many.
  __device__ __forceinline__ Part(const DecodeArgs& a, int of_item, int index) {
    item = LoadItem(a, index / of_item / a.pieces, index / of_item % a.pieces);
    const int each = (item.tiles + of_item - 1) / of_item;
    tile = min(item.tiles, index % of_item * each);
    tiles = min(each, item.tiles - tile);
    parts = each > 0 ? (item.tiles + each - 1) / each : 0;
  }
};

// What a CTA has made ready before it waits for the kernel in front.
struct BegunPart {
  Producer<false> next, late;
  QueryRow query;
  RowState state;
};

// What needs no waiting: rows and block tables were there before the step began, and so were the
// keys of earlier ones. REQUIRES: the barriers of the stages have been initialised by this thread.
__device__ __forceinline__ BegunPart Begin(const DecodeArgs& a, const Part& part, Stages stages,
                                           Shared& shared) {
  Producer<false> producer{};
  producer.Enter(part.item);
  producer.tile = part.tile;
  producer.left = part.tiles;
  producer.LoadBlock(a);
  BegunPart begun{producer, producer, QueryOfThread(a, part.item), StartRows(a, part.item)};
  __syncthreads();
#pragma unroll 1
  for (int stage = 0; stage < stages.ahead; ++stage) {
    begun.next.Issue<true, false>(a, shared, stage);
  }
  // Rows behind the last key.
  const int valid = part.item.keys - (part.tile + part.tiles - 1) * kBlockSize;
  if (part.tiles > 0 && part.tiles <= stages.ahead && valid < kBlockSize) {
    ClearRows(shared.stages[part.tiles - 1], valid);
  }
  // What was computed before the wait stays there.
  asm volatile("" : "+l"(begun.query.latent), "+l"(begun.query.rope));
  asm volatile("" : "+r"(begun.state.limit[0]), "+r"(begun.state.limit[1]));
  return begun;
}

// The keys of this step among the tiles ahead.
__device__ __forceinline__ void Complete(const DecodeArgs& a, const Part& part, Stages stages,
                                         Shared& shared, Producer<false>& late) {
  const int ahead = min(part.tiles, stages.ahead);
  if ((part.tile + ahead) * kBlockSize <= part.item.row.start_pos) return;
#pragma unroll 1
  for (int stage = 0; stage < stages.ahead; ++stage) late.Issue<false, true>(a, shared, stage);
}

// begun.state, and the columns from `column` on in o: of the part's keys. Behind the wait;
// REQUIRES: the part has tiles.
template <int kTiles>
__device__ __forceinline__ void AddPart(const DecodeArgs& a, const Part& part, Stages stages,
                                        Shared& shared, BegunPart& begun, int column,
                                        SumsOf<kTiles>& o) {
  uint4 pieces[kQueryPieces];
  FetchQueries(begun.query, pieces);
  Complete(a, part, stages, shared, begun.late);
  uint32_t q[kSteps][4];
  SpreadQueries(QueriesOf(shared, stages), pieces, q);
  if (stages.ahead < stages.tiles) {
    FenceAsync();
    __syncthreads();
    begun.next.Issue<true, true>(a, shared, stages.ahead);
  }
  Ring ring{stages.tiles};
  AddTiles(a, part.item, part.tile, part.tile + part.tiles, part.tiles <= stages.ahead, q, shared,
           ring, begun.next, begun.state, column, o);
}

#endif

}  // namespace hadal::cuda::decode16
