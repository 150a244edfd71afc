#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/cpu/attention_cache.h"
#include "kernels/cpu/ops.h"

// Each query is on its own: its keys are cut into splits at positions that its context length
// fixes, a thread takes (query, split, some heads) and leaves a partial softmax, and the partials
// are merged in order. Scores are dot products along the latent row, read once for all heads of the
// unit.

namespace hadal {
namespace {

constexpr int64_t kSplitKeys = 512;   // at least, per split
constexpr int64_t kMaxSplits = 64;    // per query
constexpr int kMaxUnitHeads = 32;     // their queries share the second-level cache with the tile
constexpr int kMinUnitHeads = 4;
constexpr int64_t kPartialBytes = int64_t{32} << 20;  // of one wave of queries

struct Query {
  int64_t token = 0;
  int64_t keys = 0;        // it sees positions 0 .. keys - 1
  const int32_t* blocks = nullptr;
  int64_t split_keys = 0;  // a multiple of kSplitKeys
  int64_t first_split = 0; // among the partials of its wave

  int64_t splits() const { return (keys + split_keys - 1) / split_keys; }
};

class DecodeAttention {
 public:
  DecodeAttention(const MlaDecodeParams& p, CpuContext& context)
      : p_(p), context_(context), kernels_(VectorKernelsFor(context.isa)),
        dim_(p.latent_rank + p.rope_dim), stride_(PaddedStride(dim_)),
        out_dim_(PaddedFloats(p.latent_rank, kernels_)),
        cache_{p.cache, p.cache_dtype, dim_, kernels_} {}

  // Queries whose partials fit in memory together.
  void RunWave(Query* queries, int64_t count) {
    ScratchArena::Scope scope(context_.shared);
    int64_t splits = 0;
    for (int64_t i = 0; i < count; ++i) {
      queries[i].first_split = splits;
      splits += queries[i].splits();
    }
    partial_o_ = context_.shared.Allocate<float>(splits * p_.heads * out_dim_);
    partial_ml_ = context_.shared.Allocate<float>(splits * p_.heads * 2);

    // Fewer heads per unit when there is not enough to do otherwise; no sum depends on it.
    int64_t head_groups = (p_.heads + kMaxUnitHeads - 1) / kMaxUnitHeads;
    const int64_t wanted = (2 * context_.pool->size() + splits - 1) / splits;
    const int64_t most = (p_.heads + kMinUnitHeads - 1) / kMinUnitHeads;
    if (context_.pool->size() > 1) head_groups = std::clamp(wanted, head_groups, most);
    context_.pool->ParallelFor(
        splits * head_groups, 1, [&](int64_t begin, int64_t end, int thread) {
          for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t split = unit / head_groups, group = unit % head_groups;
            const Query* after =
                std::upper_bound(queries, queries + count, split,
                                 [](int64_t s, const Query& q) { return s < q.first_split; });
            RunUnit(*(after - 1), split, static_cast<int>(p_.heads * group / head_groups),
                    static_cast<int>(p_.heads * (group + 1) / head_groups), thread);
          }
        });
    context_.pool->ParallelFor(count * p_.heads, 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) Merge(queries[i / p_.heads], i % p_.heads);
    });
  }

  int64_t SplitBytes() const { return p_.heads * (out_dim_ + 2) * int64_t{sizeof(float)}; }

 private:
  // Heads [head, head_end) of one split.
  void RunUnit(const Query& query, int64_t split, int head, int head_end, int thread) {
    ScratchArena& arena = context_.scratch[static_cast<size_t>(thread)];
    ScratchArena::Scope scope(arena);
    const int heads = head_end - head;
    float* q = arena.Allocate<float>(heads * stride_);
    float* tile = arena.Allocate<float>(kScoreTile * stride_);
    float* s = arena.Allocate<float>(int64_t{heads} * kScoreTile);
    float* m = arena.Allocate<float>(heads);
    float* l = arena.Allocate<float>(heads);
    float* alpha = arena.Allocate<float>(heads);
    float* o = partial_o_ + (split * p_.heads + head) * out_dim_;
    for (int h = 0; h < heads; ++h) ReadQuery(query.token, head + h, q + h * stride_);
    std::fill_n(m, heads, -std::numeric_limits<float>::infinity());
    std::fill_n(l, heads, 0.0f);
    std::fill_n(o, heads * out_dim_, 0.0f);

    const int64_t begin = (split - query.first_split) * query.split_keys;
    const int64_t end = std::min(begin + query.split_keys, query.keys);
    for (int64_t first = begin; first < end; first += kScoreTile) {
      const int keys = static_cast<int>(std::min<int64_t>(kScoreTile, end - first));
      const int columns = (keys + 3) / 4 * 4;
      cache_.ReadTile(query.blocks, first, keys, tile, stride_);
      std::fill_n(tile + keys * stride_, (columns - keys) * stride_, 0.0f);
      kernels_.dot(q, stride_, heads, tile, stride_, columns, PaddedFloats(dim_, kernels_), s,
                   kScoreTile);
      kernels_.softmax_tile(s, heads, keys, 0, p_.scale, m, l, alpha);
      kernels_.weighted_sum(s, alpha, heads, tile, stride_, keys, o, out_dim_, out_dim_);
    }
    for (int h = 0; h < heads; ++h) {
      float* ml = partial_ml_ + (split * p_.heads + head + h) * 2;
      ml[0] = m[h];
      ml[1] = l[h];
    }
  }

  void ReadQuery(int64_t token, int head, float* out) const {
    const auto* latent = static_cast<const float*>(p_.q_latent) +
                         (token * p_.heads + head) * p_.latent_rank;
    const auto* rope = static_cast<const float*>(p_.q_rope) + token * p_.q_rope_stride +
                       head * p_.q_rope_head_stride;
    std::memcpy(out, latent, static_cast<size_t>(p_.latent_rank) * sizeof(float));
    std::memcpy(out + p_.latent_rank, rope, static_cast<size_t>(p_.rope_dim) * sizeof(float));
    std::fill(out + dim_, out + stride_, 0.0f);
  }

  void Merge(const Query& query, int64_t head) const {
    float* out = static_cast<float*>(p_.out) + (query.token * p_.heads + head) * p_.latent_rank;
    const int64_t splits = query.splits();
    const auto index = [&](int64_t i) { return (query.first_split + i) * p_.heads + head; };
    float m = -std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < splits; ++i) m = std::max(m, partial_ml_[index(i) * 2]);
    float weight[kMaxSplits], l = 0;
    for (int64_t i = 0; i < splits; ++i) {
      const float* ml = partial_ml_ + index(i) * 2;
      kernels_.exp_sum(ml, 1, m, 1.0f, &weight[i]);
      l += weight[i] * ml[1];
    }
    for (int64_t i = 0; i < splits; ++i) {
      kernels_.add_scaled(partial_o_ + index(i) * out_dim_, weight[i] / l, i > 0, p_.latent_rank,
                          out);
    }
  }

  const MlaDecodeParams& p_;
  CpuContext& context_;
  const VectorKernels& kernels_;
  const int64_t dim_;      // latent_rank + rope_dim
  const int64_t stride_;   // of a tile's rows and the queries, floats
  const int64_t out_dim_;  // latent_rank, padded
  const LatentCache cache_;
  float* partial_o_ = nullptr;   // [splits][heads][out_dim_], not divided by l
  float* partial_ml_ = nullptr;  // [splits][heads][2]: maximum of the scores, sum of exp
};

}  // namespace

void MlaDecode(const MlaDecodeParams& p, CpuContext& context) {
  int64_t count = 0;
  for (int r = 0; r < p.rows.num_rows; ++r) count += p.rows.rows[r].num_tokens;
  if (count == 0 || p.heads == 0) return;
  ScratchArena::Scope scope(context.shared);
  auto* queries = context.shared.Allocate<Query>(count);
  Query* next = queries;
  for (int r = 0; r < p.rows.num_rows; ++r) {
    const AttentionRow& row = p.rows.rows[r];
    for (int i = 0; i < row.num_tokens; ++i) {
      const int64_t keys = int64_t{row.start_pos} + i + 1;
      const int64_t parts = kSplitKeys * kMaxSplits;
      *next++ = {row.first_token + i, keys, p.rows.block_tables + row.first_block,
                 kSplitKeys * ((keys + parts - 1) / parts), 0};
    }
  }
  DecodeAttention attention(p, context);
  const int64_t max_splits = std::max<int64_t>(kPartialBytes / attention.SplitBytes(), 1);
  for (int64_t begin = 0; begin < count;) {
    int64_t end = begin + 1, splits = queries[begin].splits();
    while (end < count && splits + queries[end].splits() <= max_splits) {
      splits += queries[end++].splits();
    }
    attention.RunWave(queries + begin, end - begin);
    begin = end;
  }
}

}  // namespace hadal
