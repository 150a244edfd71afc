#pragma once

#include "kernels/cuda/attention/mla.cuh"

// How the fast decode kernels share out their work. The (query, head) pairs of a row, query-major,
// are cut into `pieces` of piece_rows. Each piece is a lane of its own: CTA i works in lane
// i % pieces, so that the CTAs that need the same keys run side by side. A lane's items are its
// pieces of all rows; their keys are cut into tiles of a cache block, and all tiles of all items,
// one after the other, into equal runs, one per CTA of the lane, whatever the lengths are: these
// are known on the device only. An item that lies in one run is finished there; the others leave
// parts, which a second kernel merges. Parts cost as much as several tiles, so a cut close to
// either end of an item moves there; runs are then equal within a few tiles.

namespace hadal::cuda {

inline constexpr int kMaxRuns = 160;  // CTAs that leave parts
inline constexpr int kDecodeLatent = 512;
inline constexpr int kDecodeDim = 576;

struct DecodeArgs {
  MlaDecodeParams p;
  float scale_log2 = 0;
  int pieces = 0;
  int piece_rows = 0;
  int tiles_at_once = 0;  // that a CTA takes: cuts lie at multiples of it
  bool whole = false;     // cuts lie at the ends of items
  // Of the item of a lane: merges[row * pieces + lane]; or, where rows are many, of the item that
  // goes on behind a CTA: merges[CTA]. {row or -1, first run, last run, slot in the first run}.
  // Null: no item is cut.
  int4* merges = nullptr;
  bool by_row = false;
  float* part_o = nullptr;    // [CTA, 2, piece_rows, 512]
  float2* part_ml = nullptr;  // [CTA, 2, piece_rows]
};

__device__ __forceinline__ int Lane(const DecodeArgs& a) { return blockIdx.x % a.pieces; }

struct DecodeItem {
  int index;  // of the row
  AttentionRow row;
  int first;  // (query, head) pair
  int pairs;  // of the row
  int keys;   // that its last query sees
  int tiles;
};

__device__ __forceinline__ DecodeItem LoadItem(const DecodeArgs& a, int index, int lane) {
  DecodeItem item;
  item.index = index;
  item.row = a.p.rows.rows[index];
  item.first = lane * a.piece_rows;
  item.pairs = item.row.num_tokens * a.p.heads;
  const int last_query = (min(item.pairs, item.first + a.piece_rows) - 1) / a.p.heads;
  item.keys = item.first < item.pairs ? item.row.start_pos + last_query + 1 : 0;
  item.tiles = (item.keys + kBlockSize - 1) / kBlockSize;
  return item;
}
__device__ __forceinline__ DecodeItem LoadItem(const DecodeArgs& a, int index) {
  return LoadItem(a, index, Lane(a));
}

// Tiles by which a cut may move: of `total` tiles in `runs` runs. Short runs end together or late.
__device__ __forceinline__ int Reach(int64_t total, int runs) {
  constexpr int kMost = 4, kShort = 4;
  const auto mean = static_cast<int>(total / runs);
  return mean < kShort ? 0 : min(kMost, (mean + 1) / 2);
}
// Where a cut at tile `at` of an item of `tiles` tiles goes. Never decreases as `at` grows.
__device__ __forceinline__ int MovedCut(const DecodeArgs& a, int at, int tiles, int reach) {
  if (a.whole) return 2 * at <= tiles ? 0 : tiles;
  at -= at % a.tiles_at_once;
  if (at <= reach && 2 * at <= tiles) return 0;
  return tiles - at <= reach ? tiles : at;
}

__device__ __forceinline__ DecodeItem NextItem(const DecodeArgs& a, int index) {
  DecodeItem item;
  do {
    item = LoadItem(a, ++index);
  } while (item.tiles == 0);
  return item;
}

// The run of one CTA: `tiles` tiles from tile `tile` of item `item` on.
struct DecodeRun {
  int item = 0;
  int tile = 0;
  int tiles = 0;
  int64_t begin = 0;  // the run's first tile among all
  int64_t total = 0;  // all tiles
  int runs = 0;       // of the lane, that are not empty
};

// Of `most`, as many as are a multiple of the items where these are almost all: cuts of items of
// one length then lie at their ends and at equal parts of them.
__device__ __forceinline__ int RunsOf(int items, int most) {
  const int even = items < most ? most - most % items : most;
  return even * 8 >= most * 7 ? even : most;
}

// Called by all kThreads threads of the CTA; all of them may use `shared`, 32 ints, again behind
// the next barrier. Of a run without tiles, only that is known.
template <int kThreads>
__device__ DecodeRun FindRun(const DecodeArgs& a, int* shared) {
  const int items = a.p.rows.num_rows, lanes = a.pieces;
  const int lane_run = blockIdx.x / lanes, lane_runs = gridDim.x / lanes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int per_thread = (items + kThreads - 1) / kThreads;
  const int first = min(items, static_cast<int>(threadIdx.x) * per_thread);
  const int end = min(items, first + per_thread);
  int mine = 0;
  for (int i = first; i < end; ++i) {
    mine += LoadItem(a, i).tiles;
  }
  int before = mine;  // inclusive sum over the warp's lanes
  for (int d = 1; d < 32; d *= 2) {
    const int x = __shfl_up_sync(0xffffffffu, before, d);
    if (lane >= d) before += x;
  }
  if (lane == 31) shared[warp] = before;
  __syncthreads();
  DecodeRun run;
  int warps_before = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w < warp) warps_before += shared[w];
    run.total += shared[w];
  }
  before += warps_before - mine;
  run.runs = static_cast<int>(min(static_cast<int64_t>(RunsOf(items, lane_runs)),
                                  (run.total + a.tiles_at_once - 1) / a.tiles_at_once));
  __syncthreads();
  if (lane_run >= run.runs) return run;
  // The cuts before and behind the run, each by the thread that knows its item.
  for (int side = 0; side < 2; ++side) {
    const auto cut = static_cast<int>(run.total * (lane_run + side) / run.runs);
    if (cut == run.total && threadIdx.x == 0) shared[2 + side] = cut;
    if (cut < before || cut >= before + mine) continue;
    int i = first, begin = before, tiles;
    for (; (tiles = LoadItem(a, i).tiles) <= cut - begin; ++i) begin += tiles;
    int at = MovedCut(a, cut - begin, tiles, Reach(run.total, run.runs));
    shared[2 + side] = begin + at;
    if (side == 1) continue;
    if (at == tiles && begin + at < run.total) {
      i = NextItem(a, i).index;
      at = 0;
    }
    shared[0] = i;
    shared[1] = at;
  }
  __syncthreads();
  run.item = shared[0];
  run.tile = shared[1];
  run.begin = shared[2];
  run.tiles = shared[3] - shared[2];
  return run;
}

// Tiles tile .. tile + tiles of `item`, done by this CTA, `done` tiles into its run.
struct DecodeSegment {
  DecodeItem item;
  int tile;
  int tiles;
  int done;

  __device__ bool Whole() const { return tiles == item.tiles; }
  __device__ int Slot() const { return done == 0 ? 0 : 1; }
};

// The last run that has tiles of an item; this run has its first.
__device__ __forceinline__ int LastRun(const DecodeArgs& a, const DecodeRun& run, int own,
                                       int64_t item_end, int tiles) {
  const int reach = Reach(run.total, run.runs);
  auto last = static_cast<int>((item_end * run.runs - 1) / run.total);
  // Cuts that moved to the item's end.
  while (last > own) {
    const auto at = static_cast<int>(run.total * last / run.runs - (item_end - tiles));
    if (MovedCut(a, at, tiles, reach) < tiles) break;
    --last;
  }
  return last;
}

// Tells the second kernel what to do with the item that begins in this segment.
__device__ __forceinline__ void NoteMerge(const DecodeArgs& a, const DecodeRun& run,
                                          const DecodeSegment& s) {
  if (s.tile != 0 || a.merges == nullptr) return;
  int4 merge = make_int4(-1, 0, 0, 0);
  if (!s.Whole()) {
    const int own = static_cast<int>(blockIdx.x) / a.pieces;
    const int64_t item_end = run.begin + s.done + s.item.tiles;
    merge = make_int4(s.item.index, own, LastRun(a, run, own, item_end, s.item.tiles), s.Slot());
  }
  if (a.by_row) {
    a.merges[s.item.index * a.pieces + Lane(a)] = merge;
  } else if (!s.Whole()) {
    a.merges[blockIdx.x] = merge;
  }
}

// All threads, before NoteMerge(): nothing goes on behind this CTA yet.
template <int kThreads>
__device__ __forceinline__ void ClearMerges(const DecodeArgs& a) {
  if (a.merges == nullptr) return;
  const int4 none = make_int4(-1, 0, 0, 0);
  if (!a.by_row) {
    if (threadIdx.x == 0) a.merges[blockIdx.x] = none;
    return;
  }
  if (static_cast<int>(blockIdx.x) >= a.pieces) return;
  for (int i = threadIdx.x; i < a.p.rows.num_rows; i += kThreads) {
    if (LoadItem(a, i).tiles == 0) a.merges[i * a.pieces + Lane(a)] = none;
  }
}

// The first segment of a run, and the one after `s`. Of each, NoteMerge() is to be called.
__device__ inline DecodeSegment FirstSegment(const DecodeArgs& a, const DecodeRun& run) {
  DecodeSegment s{LoadItem(a, run.item), run.tile, 0, 0};
  s.tiles = min(run.tiles, s.item.tiles - s.tile);
  return s;
}
__device__ inline DecodeSegment NextSegment(const DecodeArgs& a, const DecodeRun& run,
                                            const DecodeSegment& s) {
  DecodeSegment next{NextItem(a, s.item.index), 0, 0, s.done + s.tiles};
  next.tiles = min(run.tiles - next.done, next.item.tiles);
  return next;
}

// Of all items of a lane, at most.
int64_t MostTiles(const DecodeArgs& args);
// Sets what no schedule needs to know: pieces of `piece_rows`.
void SetPieces(DecodeArgs& args, int piece_rows);
// Sets what is left to set: scratch, and whether items of at most `whole_tiles` stay whole. Returns
// the number of CTAs.
int PrepareDecode(DecodeArgs& args, int piece_rows, int tiles_at_once, int whole_tiles,
                  CudaContext& context);
// The second kernel, where it is needed.
void MergeDecode(const DecodeArgs& args, int ctas, CudaContext& context);
int64_t FastDecodeScratchBytes(int piece_rows);

}  // namespace hadal::cuda
