#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "kernels/cpu/attention_cache.h"
#include "kernels/cpu/attention_half.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/packed_weight.h"

// A thread takes one head of one row: it makes the keys and values of a tile once and lets all the
// row's queries see them before it goes on to the next tile, or takes those that an earlier chunk has
// kept (ExpandedKeys). Tiles are cache blocks, so a query meets its keys in the same pieces and order
// whatever chunk it came in. Scores and sums are made
// in float, or on bf16 operands (HalfAttention) where the kernels ask for it and the weights are
// not F32.

namespace hadal {
namespace {

constexpr int64_t kMinQueries = 64;   // of a unit, when rows are split to occupy all threads
constexpr int kQueryBlocks = 4;       // blocks of VectorKernels::query_rows scored at once

// Floats between rows of values, at most.
int64_t ValueStride(int v_dim) { return (v_dim + kPanel - 1) / kPanel * kPanel; }

struct Unit {
  const AttentionRow* row = nullptr;
  bool keeps = false;    // MlaPrefillParams::expanded is of this row
  int head = 0;
  int begin = 0;  // queries of the row
  int end = 0;
};

class PrefillAttention {
 public:
  PrefillAttention(const MlaPrefillParams& p, CpuContext& context)
      : p_(p), context_(context), kernels_(VectorKernelsFor(context.isa)),
        half_(context.gemm->bf16_attention && p.w_uk->dtype != DType::kF32),
        qk_dim_(p.nope_dim + p.rope_dim),
        v_stride_(half_ ? ValueStride(p.v_dim) : PaddedFloats(p.v_dim, kernels_)),
        latent_dim_(p.latent_rank + p.rope_dim), latent_stride_(PaddedStride(latent_dim_)),
        cache_{p.cache, p.cache_dtype, latent_dim_, kernels_} {}

  void RunUnit(const Unit& unit, int thread) {
    ScratchArena& arena = context_.scratch[static_cast<size_t>(thread)];
    ScratchArena::Scope scope(arena);
    Buffers b = Allocate(unit.end - unit.begin, arena);
    const int64_t first_pos = int64_t{unit.row->start_pos} + unit.begin;
    const int64_t end_pos = int64_t{unit.row->start_pos} + unit.end;
    ReadQueries(unit, b.q);
    if (half_) {
      b.half.emplace(*context_.gemm, kernels_, qk_dim_, v_stride_, unit.end - unit.begin, arena);
      b.half->SetQueries(b.q, unit.end - unit.begin);
    }
    for (int64_t first = 0; first < end_pos; first += kScoreTile) {
      const int keys = static_cast<int>(std::min<int64_t>(kScoreTile, end_pos - first));
      PlaceTile(unit, static_cast<int>(first / kScoreTile), b);
      if (!b.tile_filled) MakeTile(unit, first, keys, b, arena);
      if (half_) b.half->SetTile(b.tile_keys, b.tile_values);
      // Queries before the tile see nothing of it.
      const auto begin = static_cast<int>(std::max<int64_t>(0, first - first_pos));
      Attend(first_pos - first, begin, unit.end - unit.begin, keys, b);
    }
    WriteOutput(unit, b);
  }

 private:
  struct Buffers {
    float* q;       // [queries][qk_dim]
    float* o;       // [queries][v_stride], not divided by l
    float* m;       // [queries] maximum of the scores
    float* l;       // [queries] sum of exp
    float* latent;  // [kScoreTile][latent_stride]
    float* keys;    // [kScoreTile][qk_dim]
    float* keys_t;  // the same, transposed by groups
    float* values;  // [kScoreTile][v_stride]
    float* tile_keys;    // of the present tile: keys with half_, else keys_t; here or kept
    float* tile_values;
    bool tile_filled;    // by an earlier chunk
    float* s;       // [block][kScoreTile]
    float* alpha;   // [block]
    std::optional<HalfAttention> half;
  };

  int BlockRows() const {
    return half_ ? context_.gemm->bf16_shape.max_rows : kernels_.query_rows * kQueryBlocks;
  }

  Buffers Allocate(int64_t queries, ScratchArena& arena) const {
    Buffers b{};
    b.q = arena.Allocate<float>(queries * qk_dim_);
    b.o = arena.Allocate<float>(queries * v_stride_);
    b.m = arena.Allocate<float>(queries);
    b.l = arena.Allocate<float>(queries);
    b.latent = arena.Allocate<float>(kScoreTile * latent_stride_);
    b.keys = arena.Allocate<float>(kScoreTile * qk_dim_);
    b.keys_t = arena.Allocate<float>(kScoreTile * qk_dim_);
    b.values = arena.Allocate<float>(kScoreTile * v_stride_);
    b.s = arena.Allocate<float>(int64_t{BlockRows()} * kScoreTile);
    b.alpha = arena.Allocate<float>(BlockRows());
    std::fill_n(b.o, queries * v_stride_, 0.0f);
    std::fill_n(b.m, queries, -std::numeric_limits<float>::infinity());
    std::fill_n(b.l, queries, 0.0f);
    return b;
  }

  void ReadQueries(const Unit& unit, float* out) const {
    const auto* q = static_cast<const float*>(p_.q) + unit.head * qk_dim_;
    for (int i = unit.begin; i < unit.end; ++i, out += qk_dim_) {
      const int64_t token = unit.row->first_token + i;
      std::memcpy(out, q + token * p_.q_stride, static_cast<size_t>(qk_dim_) * sizeof(float));
    }
  }

  // Where the keys and values of a tile are to be. Of several pieces of a row the last one, which
  // sees all tiles, adds those that are missing.
  void PlaceTile(const Unit& unit, int index, Buffers& b) const {
    const ExpandedKeys& kept = p_.expanded;
    b.tile_filled = unit.keeps && index < kept.filled;
    const bool adds = unit.keeps && index < kept.tiles && unit.end == unit.row->num_tokens;
    b.tile_keys = half_ ? b.keys : b.keys_t;
    b.tile_values = b.values;
    if (!b.tile_filled && !adds) return;
    b.tile_keys = static_cast<float*>(kept.data) +
                  (int64_t{unit.head} * kept.tiles + index) * ExpandedTileFloats(qk_dim_, p_.v_dim);
    b.tile_values = b.tile_keys + kScoreTile * qk_dim_;
  }

  // Keys and values of the positions first .. first + keys; rows behind them are zero.
  void MakeTile(const Unit& unit, int64_t first, int keys, Buffers& b,
                ScratchArena& arena) const {
    float* const rows = half_ ? b.tile_keys : b.keys;
    cache_.ReadTile(p_.rows.block_tables + unit.row->first_block, first, keys, b.latent,
                    latent_stride_);
    MatMulSerial(b.latent, latent_stride_, keys, *CpuMatrices(p_.w_uk)[unit.head], rows, qk_dim_,
                 *context_.gemm, arena);
    std::fill_n(b.tile_values, kScoreTile * v_stride_, 0.0f);
    MatMulSerial(b.latent, latent_stride_, keys, *CpuMatrices(p_.w_uv)[unit.head], b.tile_values,
                 v_stride_, *context_.gemm, arena);
    for (int j = 0; j < keys; ++j) {
      std::memcpy(rows + j * qk_dim_ + p_.nope_dim,
                  b.latent + j * latent_stride_ + p_.latent_rank,
                  static_cast<size_t>(p_.rope_dim) * sizeof(float));
    }
    std::fill(rows + keys * qk_dim_, rows + kScoreTile * qk_dim_, 0.0f);
    if (!half_) {
      kernels_.transpose_keys(rows, qk_dim_, qk_dim_, kernels_.key_group, b.tile_keys);
    }
  }

  // Query i of the unit sees the first `offset` + i + 1 keys of the tile.
  void Attend(int64_t offset, int begin, int end, int keys, const Buffers& b) const {
    const int groups = (keys + kernels_.key_group - 1) / kernels_.key_group;
    for (int i = begin; i < end; i += BlockRows()) {
      const int rows = std::min(BlockRows(), end - i);
      float* o = b.o + i * v_stride_;
      if (half_) {
        b.half->Score(i, rows, b.s);
      } else {
        kernels_.score_tile(b.q + i * qk_dim_, rows, qk_dim_, b.tile_keys, groups, b.s);
      }
      kernels_.softmax_tile(b.s, rows, offset + i + 1, 1, p_.scale, b.m + i, b.l + i, b.alpha);
      if (half_) {
        b.half->AddValues(b.s, b.alpha, rows, o);
      } else {
        kernels_.weighted_sum(b.s, b.alpha, rows, b.tile_values, v_stride_, keys, o,
                              v_stride_, v_stride_);
      }
    }
  }

  void WriteOutput(const Unit& unit, const Buffers& b) const {
    auto* out = static_cast<float*>(p_.out);
    for (int i = unit.begin; i < unit.end; ++i) {
      const int64_t token = unit.row->first_token + i;
      const int64_t local = i - unit.begin;
      kernels_.add_scaled(b.o + local * v_stride_, 1.0f / b.l[local], false, p_.v_dim,
                          out + (token * p_.heads + unit.head) * p_.v_dim);
    }
  }

  const MlaPrefillParams& p_;
  CpuContext& context_;
  const VectorKernels& kernels_;
  const bool half_;  // products on bf16
  const int64_t qk_dim_;
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

}  // namespace

int64_t ExpandedTileFloats(int64_t qk_dim, int v_dim) {
  return kScoreTile * (qk_dim + ValueStride(v_dim));
}

void MlaPrefill(const MlaPrefillParams& p, CpuContext& context) {
  if (p.rows.num_rows == 0 || p.heads == 0) return;
  ScratchArena::Scope scope(context.shared);
  int64_t count = 0;
  for (int r = 0; r < p.rows.num_rows; ++r) {
    count += PiecesPerRow(p, p.rows.rows[r], context.pool->size()) * p.heads;
  }
  auto* units = context.shared.Allocate<Unit>(count);
  Unit* next = units;
  for (int r = 0; r < p.rows.num_rows; ++r) {
    const AttentionRow& row = p.rows.rows[r];
    const int64_t pieces = PiecesPerRow(p, row, context.pool->size());
    for (int head = 0; head < p.heads; ++head) {
      for (int64_t i = 0; i < pieces; ++i) {
        *next++ = {&row, r == p.expanded.row, head,
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
