#include <algorithm>
#include <limits>
#include <optional>

#include "common/rounding.h"
#include "kernels/cpu/attention_cache.h"
#include "kernels/cpu/attention_half.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/packed_weight.h"

// A thread takes some heads of one row: it makes the keys and values of a tile once and lets all the
// row's queries see them before it goes on to the next tile, or takes those that an earlier chunk has
// kept (ExpandedKeys). Tiles are cache blocks, so a query meets its keys in the same pieces and order
// whatever chunk it came in. The rotary part of keys is the same for all heads and is kept and made
// once for them: few queries take as long as it takes to read what is kept. Scores and sums are made
// in float, or on bf16 operands (HalfAttention) where the kernels ask for it and the weights are
// not F32.

namespace hadal {
namespace {

constexpr int64_t kMinQueries = 64;   // of a unit, when rows are split to occupy all threads
constexpr int kQueryBlocks = 4;       // blocks of VectorKernels::query_rows scored at once

// Floats between rows of values, at most.
int64_t ValueStride(int v_dim) { return (v_dim + kPanel - 1) / kPanel * kPanel; }
// A head's part of a kept tile.
int64_t HeadFloats(int nope_dim, int v_dim) { return kScoreTile * (nope_dim + ValueStride(v_dim)); }

struct Unit {
  const AttentionRow* row = nullptr;
  bool keeps = false;    // MlaPrefillParams::expanded is of this row
  int first_head = 0;
  int heads = 0;
  int begin = 0;  // queries of the row
  int end = 0;
  int queries() const { return end - begin; }
};

class PrefillAttention {
 public:
  PrefillAttention(const MlaPrefillParams& p, CpuContext& context)
      : p_(p), context_(context), kernels_(VectorKernelsFor(context.isa)),
        half_(RunsOnHalf(p, context)),
        v_stride_(half_ ? ValueStride(p.v_dim) : PaddedFloats(p.v_dim, kernels_)),
        latent_dim_(p.latent_rank + p.rope_dim), latent_stride_(PaddedStride(latent_dim_)),
        cache_{p.cache, p.cache_dtype, latent_dim_, kernels_} {}

  static bool RunsOnHalf(const MlaPrefillParams& p, const CpuContext& context) {
    return context.gemm->bf16_attention && p.w_uk->dtype != DType::kF32;
  }

  // REQUIRES: one head where products are on bf16.
  void RunUnit(const Unit& unit, int thread) {
    ScratchArena& arena = context_.scratch[static_cast<size_t>(thread)];
    ScratchArena::Scope scope(arena);
    Buffers b = Allocate(unit, arena);
    const int64_t first_pos = int64_t{unit.row->start_pos} + unit.begin;
    const int64_t end_pos = int64_t{unit.row->start_pos} + unit.end;
    for (int64_t first = 0; first < end_pos; first += kScoreTile) {
      const int keys = static_cast<int>(std::min<int64_t>(kScoreTile, end_pos - first));
      PlaceTile(unit, static_cast<int>(first / kScoreTile), b);
      if (!b.filled) ReadLatent(unit, first, keys, b);
      for (int h = 0; h < unit.heads; ++h) {
        HeadTile tile = TileOf(unit, h, b);
        if (!b.filled) MakeTile(unit.first_head + h, keys, tile, b, arena);
        if (half_) b.half->SetTile(tile.keys, p_.nope_dim, b.rope, p_.rope_dim, tile.values);
        // Queries before the tile see nothing of it.
        const auto begin = static_cast<int>(std::max<int64_t>(0, first - first_pos));
        Attend(unit, h, first_pos - first, begin, keys, tile, b);
      }
    }
    for (int h = 0; h < unit.heads; ++h) WriteOutput(unit, h, b);
  }

 private:
  // Keys without their rotary part: rows with half_, else transposed by groups.
  struct HeadTile {
    float* keys;
    float* values;  // [kScoreTile][v_stride]
  };
  struct Buffers {
    float* nope;    // of queries, [heads][queries][nope_dim]
    float* turned;  // [heads][queries][rope_dim]
    float* o;       // [heads][queries][v_stride], not divided by l
    float* m;       // [heads][queries] maximum of the scores
    float* l;       // [heads][queries] sum of exp
    float* latent;  // [kScoreTile][latent_stride]
    float* rows;    // [kScoreTile][RowStride()], to be transposed
    HeadTile tile;  // where it is not kept
    float* made_rope;  // as HeadTile::keys
    float* rope;       // of the present tile, here or kept
    float* kept;       // the present tile's heads, null: it is not kept
    bool filled;       // by an earlier chunk
    float* s;       // [block][kScoreTile]
    float* alpha;   // [block]
    std::optional<HalfAttention> half;
  };

  int BlockRows() const {
    return half_ ? context_.gemm->bf16_shape.max_rows : kernels_.query_rows * kQueryBlocks;
  }

  Buffers Allocate(const Unit& unit, ScratchArena& arena) const {
    const int64_t rows = int64_t{unit.heads} * unit.queries();
    const int64_t wide = RowStride(std::max(p_.nope_dim, p_.rope_dim));
    Buffers b{};
    b.nope = arena.Allocate<float>(rows * p_.nope_dim);
    b.turned = arena.Allocate<float>(rows * p_.rope_dim);
    b.o = arena.Allocate<float>(rows * v_stride_);
    b.m = arena.Allocate<float>(rows);
    b.l = arena.Allocate<float>(rows);
    b.latent = arena.Allocate<float>(kScoreTile * latent_stride_);
    b.rows = arena.Allocate<float>(kScoreTile * wide);
    b.tile = {arena.Allocate<float>(kScoreTile * p_.nope_dim),
              arena.Allocate<float>(kScoreTile * v_stride_)};
    b.made_rope = arena.Allocate<float>(kScoreTile * p_.rope_dim);
    b.s = arena.Allocate<float>(int64_t{BlockRows()} * kScoreTile);
    b.alpha = arena.Allocate<float>(BlockRows());
    std::fill_n(b.o, rows * v_stride_, 0.0f);
    std::fill_n(b.m, rows, -std::numeric_limits<float>::infinity());
    std::fill_n(b.l, rows, 0.0f);
    for (int h = 0; h < unit.heads; ++h) ReadQueries(unit, h, b);
    if (half_) {
      b.half.emplace(*context_.gemm, kernels_, p_.nope_dim + p_.rope_dim, v_stride_,
                     unit.queries(), arena);
      b.half->SetQueries(b.nope, p_.nope_dim, b.turned, p_.rope_dim, unit.queries());
    }
    return b;
  }

  void ReadQueries(const Unit& unit, int h, const Buffers& b) const {
    const int64_t qk_dim = p_.nope_dim + p_.rope_dim;
    const auto* q = static_cast<const float*>(p_.q) + (unit.first_head + h) * qk_dim;
    for (int i = unit.begin; i < unit.end; ++i) {
      const float* from = q + (unit.row->first_token + i) * p_.q_stride;
      const int64_t at = int64_t{h} * unit.queries() + i - unit.begin;
      std::copy_n(from, p_.nope_dim, b.nope + at * p_.nope_dim);
      std::copy_n(from + p_.nope_dim, p_.rope_dim, b.turned + at * p_.rope_dim);
    }
  }

  // Where the keys and values of a tile are to be. Of several pieces of a row the last one, which
  // sees all tiles, adds those that are missing; their rotary part is of the unit of the first head.
  void PlaceTile(const Unit& unit, int index, Buffers& b) const {
    const ExpandedKeys& kept = p_.expanded;
    b.filled = unit.keeps && index < kept.filled;
    const bool adds = unit.keeps && index < kept.tiles && unit.end == unit.row->num_tokens;
    b.rope = b.made_rope;
    b.kept = nullptr;
    if (!b.filled && !adds) return;
    float* tile = static_cast<float*>(kept.data) +
                  index * ExpandedTileFloats(p_.heads, p_.nope_dim, p_.rope_dim, p_.v_dim);
    if (b.filled || unit.first_head == 0) b.rope = tile;
    b.kept = tile + kScoreTile * p_.rope_dim;
  }
  HeadTile TileOf(const Unit& unit, int h, const Buffers& b) const {
    if (b.kept == nullptr) return b.tile;
    float* keys = b.kept + (unit.first_head + h) * HeadFloats(p_.nope_dim, p_.v_dim);
    return {keys, keys + kScoreTile * p_.nope_dim};
  }

  // The positions first .. first + keys, and the rotary part of their keys; rows behind them are zero.
  void ReadLatent(const Unit& unit, int64_t first, int keys, const Buffers& b) const {
    cache_.ReadTile(p_.rows.block_tables + unit.row->first_block, first, keys, b.latent,
                    latent_stride_);
    float* const rows = half_ ? b.rope : b.rows;
    for (int j = 0; j < keys; ++j) {
      std::copy_n(b.latent + j * latent_stride_ + p_.latent_rank, p_.rope_dim,
                  rows + j * RowStride(p_.rope_dim));
    }
    Finish(rows, keys, p_.rope_dim, b.rope);
  }
  void MakeTile(int head, int keys, const HeadTile& tile, const Buffers& b,
                ScratchArena& arena) const {
    float* const rows = half_ ? tile.keys : b.rows;
    MatMulSerial(b.latent, latent_stride_, keys, *CpuMatrices(p_.w_uk)[head], rows,
                 RowStride(p_.nope_dim), *context_.gemm, arena);
    Finish(rows, keys, p_.nope_dim, tile.keys);
    std::fill_n(tile.values, kScoreTile * v_stride_, 0.0f);
    MatMulSerial(b.latent, latent_stride_, keys, *CpuMatrices(p_.w_uv)[head], tile.values,
                 v_stride_, *context_.gemm, arena);
  }
  // Zeros behind the last key, and the order that scores are made in.
  void Finish(float* rows, int keys, int64_t dim, float* out) const {
    const int64_t stride = RowStride(dim);
    std::fill(rows + keys * stride, rows + kScoreTile * stride, 0.0f);
    if (!half_) kernels_.transpose_keys(rows, stride, dim, kernels_.key_group, out);
  }
  // Between keys that are not transposed yet; with half_ they stay as they are.
  int64_t RowStride(int64_t dim) const { return half_ ? dim : PaddedStride(dim); }

  // Query i of the unit sees the first `offset` + i + 1 keys of the tile.
  void Attend(const Unit& unit, int h, int64_t offset, int begin, int keys, const HeadTile& tile,
              const Buffers& b) const {
    const int groups = (keys + kernels_.key_group - 1) / kernels_.key_group;
    for (int i = begin; i < unit.queries(); i += BlockRows()) {
      const int rows = std::min(BlockRows(), unit.queries() - i);
      const int64_t at = int64_t{h} * unit.queries() + i;
      float* o = b.o + at * v_stride_;
      if (half_) {
        b.half->Score(i, rows, b.s);
      } else {
        kernels_.score_tile(b.nope + at * p_.nope_dim, rows, p_.nope_dim, tile.keys, groups, false,
                            b.s);
        kernels_.score_tile(b.turned + at * p_.rope_dim, rows, p_.rope_dim, b.rope, groups, true,
                            b.s);
      }
      kernels_.softmax_tile(b.s, rows, offset + i + 1, 1, p_.scale, b.m + at, b.l + at, b.alpha);
      if (half_) {
        b.half->AddValues(b.s, b.alpha, rows, o);
      } else {
        kernels_.weighted_sum(b.s, b.alpha, rows, tile.values, v_stride_, keys, o, v_stride_,
                              v_stride_);
      }
    }
  }

  void WriteOutput(const Unit& unit, int h, const Buffers& b) const {
    auto* out = static_cast<float*>(p_.out);
    for (int i = unit.begin; i < unit.end; ++i) {
      const int64_t token = unit.row->first_token + i;
      const int64_t at = int64_t{h} * unit.queries() + i - unit.begin;
      kernels_.add_scaled(b.o + at * v_stride_, 1.0f / b.l[at], false, p_.v_dim,
                          out + (token * p_.heads + unit.first_head + h) * p_.v_dim);
    }
  }

  const MlaPrefillParams& p_;
  CpuContext& context_;
  const VectorKernels& kernels_;
  const bool half_;  // products on bf16
  const int64_t v_stride_;
  const int64_t latent_dim_;
  const int64_t latent_stride_;
  const LatentCache cache_;
};

// Into how many pieces a row's queries are cut: more than one costs the tiles again.
int64_t PiecesPerRow(const MlaPrefillParams& p, const AttentionRow& row, int threads) {
  const int64_t wanted = (2 * threads - 1) / (int64_t{p.rows.num_rows} * p.heads) + 1;
  return threads == 1 ? 1 : std::clamp<int64_t>(row.num_tokens / kMinQueries, 1, wanted);
}

// Heads that share the rotary part of a tile, as many as leave a unit for each thread. Of many queries
// one head's products take longer than reading.
int HeadsPerUnit(const MlaPrefillParams& p, const AttentionRow& row, const CpuContext& context) {
  if (row.num_tokens > kMinQueries || PrefillAttention::RunsOnHalf(p, context)) return 1;
  const int64_t threads = context.pool->size(), all = int64_t{p.rows.num_rows} * p.heads;
  return static_cast<int>(std::clamp<int64_t>(CeilDiv(all, threads), 1, p.heads));
}

}  // namespace

int64_t ExpandedTileFloats(int heads, int nope_dim, int rope_dim, int v_dim) {
  return kScoreTile * int64_t{rope_dim} + heads * HeadFloats(nope_dim, v_dim);
}

void MlaPrefill(const MlaPrefillParams& p, CpuContext& context) {
  if (p.rows.num_rows == 0 || p.heads == 0) return;
  ScratchArena::Scope scope(context.shared);
  const int threads = context.pool->size();
  int64_t count = 0;
  for (int r = 0; r < p.rows.num_rows; ++r) {
    const AttentionRow& row = p.rows.rows[r];
    count += PiecesPerRow(p, row, threads) * CeilDiv(p.heads, HeadsPerUnit(p, row, context));
  }
  auto* units = context.shared.Allocate<Unit>(count);
  Unit* next = units;
  for (int r = 0; r < p.rows.num_rows; ++r) {
    const AttentionRow& row = p.rows.rows[r];
    const int64_t pieces = PiecesPerRow(p, row, threads);
    const int heads = HeadsPerUnit(p, row, context);
    for (int head = 0; head < p.heads; head += heads) {
      for (int64_t i = 0; i < pieces; ++i) {
        *next++ = {&row, r == p.expanded.row, head, std::min(heads, p.heads - head),
                   static_cast<int>(row.num_tokens * i / pieces),
                   static_cast<int>(row.num_tokens * (i + 1) / pieces)};
      }
    }
  }
  PrefillAttention attention(p, context);
  context.pool->ParallelFor(count, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) attention.RunUnit(units[i], thread);
  });
}

}  // namespace hadal
