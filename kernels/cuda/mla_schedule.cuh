#pragma once

#include "kernels/cuda/mla.cuh"

// How the fast decode kernels share out their work. An item is a piece of `piece_rows` of the
// (query, head) pairs of one row, query-major; its keys are cut into tiles of a cache block. All
// tiles of all items, one after the other, are cut into equal runs, one per CTA, whatever the
// lengths are: these are known on the device only. An item that lies in one run is finished there;
// the others leave parts, which a second kernel merges.

namespace hadal::cuda {

inline constexpr int kMaxRuns = 256;  // CTAs

struct DecodeArgs {
  MlaDecodeParams p;
  float scale_log2 = 0;
  int pieces = 0;              // items per row
  int piece_rows = 0;
  bool by_item = false;        // merges[item] instead of merges[run that begins it]
  int4* merges = nullptr;      // {item or -1, first run, last run, slot in the first run}
  float* part_o = nullptr;     // [run, 2, piece_rows, 512]
  float2* part_ml = nullptr;   // [run, 2, piece_rows]

  __host__ __device__ int items() const { return p.rows.num_rows * pieces; }
};

struct DecodeItem {
  int index;
  AttentionRow row;
  int first;   // (query, head) pair
  int pairs;   // of the row
  int keys;    // that its last query sees
  int tiles;
};

__device__ __forceinline__ DecodeItem LoadItem(const DecodeArgs& a, int index) {
  DecodeItem item;
  item.index = index;
  item.row = a.p.rows.rows[index / a.pieces];
  item.first = index % a.pieces * a.piece_rows;
  item.pairs = item.row.num_tokens * a.p.heads;
  const int last_query = (min(item.pairs, item.first + a.piece_rows) - 1) / a.p.heads;
  item.keys = item.first < item.pairs ? item.row.start_pos + last_query + 1 : 0;
  item.tiles = (item.keys + kBlockSize - 1) / kBlockSize;
  return item;
}

// The run of one CTA: `tiles` tiles from tile `tile` of item `item` on.
struct DecodeRun {
  int item = 0;
  int tile = 0;
  int tiles = 0;
  int64_t begin = 0;   // the run's first tile among all
  int64_t total = 0;   // all tiles
  int runs = 0;        // that are not empty
};

// Called by all `threads` threads of the CTA; ends with a barrier. `shared` has 32 + 1 ints.
template <int kThreads>
__device__ DecodeRun FindRun(const DecodeArgs& a, int items, int* shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int per_thread = (items + kThreads - 1) / kThreads;
  const int first = min(items, static_cast<int>(threadIdx.x) * per_thread);
  const int end = min(items, first + per_thread);
  int mine = 0;
  for (int i = first; i < end; ++i) {
    const int tiles = LoadItem(a, i).tiles;
    if (tiles == 0 && a.by_item && blockIdx.x == 0) a.merges[i] = make_int4(-1, 0, 0, 0);
    mine += tiles;
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
  run.runs = static_cast<int>(min(static_cast<int64_t>(gridDim.x), run.total));
  __syncthreads();
  if (static_cast<int>(blockIdx.x) < run.runs) {
    run.begin = run.total * blockIdx.x / run.runs;
    run.tiles = static_cast<int>(run.total * (blockIdx.x + 1) / run.runs - run.begin);
    if (run.begin >= before && run.begin < before + mine) {
      int i = first, skip = static_cast<int>(run.begin) - before;
      for (int tiles; (tiles = LoadItem(a, i).tiles) <= skip; ++i) skip -= tiles;
      shared[0] = i;
      shared[1] = skip;
    }
  }
  __syncthreads();
  run.item = shared[0];
  run.tile = shared[1];
  return run;
}

__device__ __forceinline__ DecodeItem NextItem(const DecodeArgs& a, int index) {
  DecodeItem item;
  do {
    item = LoadItem(a, ++index);
  } while (item.tiles == 0);
  return item;
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

// One thread tells the second kernel what to do with the item that begins in this segment.
__device__ __forceinline__ void NoteMerge(const DecodeArgs& a, const DecodeRun& run,
                                          const DecodeSegment& s) {
  if (s.tile != 0) return;
  int4 merge = make_int4(-1, 0, 0, 0);
  if (!s.Whole()) {
    const int64_t last = run.begin + s.done + s.item.tiles - 1;
    const int last_run = static_cast<int>(((last + 1) * run.runs - 1) / run.total);
    merge = make_int4(s.item.index, blockIdx.x, last_run, s.Slot());
  }
  if (a.by_item) {
    a.merges[s.item.index] = merge;
  } else if (!s.Whole()) {
    a.merges[blockIdx.x] = merge;
  }
}

// The number of CTAs and the scratch of a fast kernel; and the second kernel.
int DecodeRuns(const DecodeArgs& args, const CudaContext& context);
void AllocateDecode(DecodeArgs& args, int runs, CudaContext& context);
void MergeDecode(const DecodeArgs& args, int runs, CudaContext& context);
int64_t FastDecodeScratchBytes(int piece_rows);

}  // namespace hadal::cuda
