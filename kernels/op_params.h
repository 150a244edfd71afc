#pragma once

// What the ops of backend.h take: one plain struct each. Every pointer is backend memory
// (Backend::Allocate), index arrays included, unless it says "host". Activations ("act") have the
// type Backend::activation_dtype(): float on the CPU, bf16 or float on a GPU. Shapes are row-major; a
// stride counts elements.
//
// Padding: a row with position -1 is nobody's. Ops skip it or write anything to its output.

#include <cstdint>

#include "common/dtype.h"
#include "common/step_plan.h"
#include "kernels/weight_source.h"

namespace hadal {

struct EmbedParams {
  // [tokens]; -1 - s stands for last_tokens[s].
  const int32_t* ids = nullptr;
  const int32_t* last_tokens = nullptr;  // [slots], or null: there is no such id
  int tokens = 0;
  const void* table = nullptr;   // [vocab_end - vocab_begin, dim] of table_dtype
  DType table_dtype = DType::kBF16;
  int32_t vocab_begin = 0;       // ids outside [vocab_begin, vocab_end) give a row of zeros
  int32_t vocab_end = 0;
  int64_t dim = 0;
  bool float_out = false;        // out is float, not act: the residual stream
  void* out = nullptr;           // [tokens, dim]
};

// residual = from + delta (what is set of them); out = weight * residual / sqrt(mean(residual^2) + eps).
struct RmsNormParams {
  void* residual = nullptr;      // [tokens, dim], stride x_stride
  const void* from = nullptr;    // like residual, apart from it; null: residual itself
  bool float_residual = false;   // residual is float, not act: the residual stream
  const void* delta = nullptr;   // [tokens, dim] act or null, contiguous
  const float* weight = nullptr; // [dim]
  void* out = nullptr;           // [tokens, dim] act, stride out_stride; may be null: only the sum
  int tokens = 0;
  int64_t dim = 0;
  int64_t x_stride = 0;
  int64_t out_stride = 0;
  float eps = 1e-6f;
};

// y = x w^T.
struct MatMulParams {
  const void* x = nullptr;       // [m, k] act, stride x_stride
  int64_t x_stride = 0;
  const PackedWeight* w = nullptr;
  void* y = nullptr;             // [m, n], stride y_stride
  int64_t y_stride = 0;
  bool float_out = false;        // y is float, not act: logits
  int m = 0;
};

// y[t, h] = x[t, h] w[h]^T for every head: the absorbed projections of MLA.
struct HeadMatMulParams {
  const void* x = nullptr;       // [m, heads, k] act
  int64_t x_stride = 0;          // between tokens
  int64_t x_head_stride = 0;
  const PackedWeight* w = nullptr;  // [heads] of [n, k]
  void* y = nullptr;             // [m, heads, n] act
  int64_t y_stride = 0;
  int64_t y_head_stride = 0;
  int m = 0;
  int heads = 0;
};

// Turns the queries' rotary part in place, pairs (2i, 2i + 1) by position[t] * theta_i, and writes
// one row of the latent cache per token: [rmsnorm(c) * weight ; rope(k_pe)].
struct MlaInputParams {
  void* q_rope = nullptr;        // act; element of token 0, head 0
  int64_t q_rope_stride = 0;     // between tokens
  int64_t q_rope_head_stride = 0;
  int heads = 0;
  const void* kv_a = nullptr;    // [tokens, latent_rank + rope_dim] act, stride kv_a_stride
  int64_t kv_a_stride = 0;
  const float* weight = nullptr; // [latent_rank]
  float eps = 1e-6f;
  int latent_rank = 0;
  int rope_dim = 0;
  const int32_t* positions = nullptr;  // [tokens]
  const float* cos_sin = nullptr;      // [max_seq_len, rope_dim / 2, 2]
  const int64_t* cache_rows = nullptr; // [tokens] block * kBlockSize + offset
  void* cache = nullptr;  // [blocks * kBlockSize, latent_rank + rope_dim] of cache_dtype
  DType cache_dtype = DType::kBF16;
  int tokens = 0;
};

// Consecutive queries of one sequence; query i sees the keys at positions 0 .. start_pos + i.
struct AttentionRow {
  int32_t first_token = 0;       // index of its first query in q and out
  int32_t num_tokens = 0;        // 0: nobody's row
  int32_t start_pos = 0;
  int32_t first_block = 0;       // where its block table starts in AttentionRows::block_tables
};

struct AttentionRows {
  const AttentionRow* rows = nullptr;       // [num_rows]
  const AttentionRow* host_rows = nullptr;  // host; the same, null in an op that may be replayed
  int num_rows = 0;
  const int32_t* block_tables = nullptr;    // of each row: ceil((start_pos + num_tokens) / 64) ids
  int tokens = 0;                           // of all rows
  int max_row_tokens = 0;                   // upper bound of num_tokens
  int64_t max_context = 0;                  // upper bound of start_pos + num_tokens
};

// Absorbed form: scores = (q_latent . c + q_rope . k_pe) * scale, out = softmax(scores) c.
struct MlaDecodeParams {
  const void* q_latent = nullptr;  // [tokens, heads, latent_rank] act, contiguous
  const void* q_rope = nullptr;    // act; element of token 0, head 0
  int64_t q_rope_stride = 0;       // between tokens
  int64_t q_rope_head_stride = 0;
  void* out = nullptr;             // [tokens, heads, latent_rank] act, contiguous
  AttentionRows rows;
  const void* cache = nullptr;     // [blocks * kBlockSize, latent_rank + rope_dim] of cache_dtype
  DType cache_dtype = DType::kBF16;
  int heads = 0;
  int latent_rank = 0;
  int rope_dim = 0;
  float scale = 1;
};

// Keys and values of one row's first positions in the up-projected form, kept by one layer from one
// chunk of the sequence to the next.
struct ExpandedKeys {
  int row = -1;                  // index in AttentionRows::rows; -1: nothing is kept
  void* data = nullptr;          // [tiles] of Backend::ExpandedTileBytes()
  int tiles = 0;                 // room, for so many blocks of positions
  int filled = 0;                // tiles that are there; the op adds those after them that it needs
};

// Up-projected form: k_nope = c w_uk^T and v = c w_uv^T per head. host_rows is set.
struct MlaPrefillParams {
  const void* q = nullptr;         // [tokens, heads, nope_dim + rope_dim] act, stride q_stride
  int64_t q_stride = 0;            // between tokens; heads are contiguous
  void* out = nullptr;             // [tokens, heads, v_dim] act, contiguous
  AttentionRows rows;
  const void* cache = nullptr;     // as in MlaDecodeParams
  DType cache_dtype = DType::kBF16;
  const PackedWeight* w_uk = nullptr;  // [heads] of [nope_dim, latent_rank]
  const PackedWeight* w_uv = nullptr;  // [heads] of [v_dim, latent_rank]
  int heads = 0;
  int latent_rank = 0;
  int nope_dim = 0;
  int rope_dim = 0;
  int v_dim = 0;
  float scale = 1;
  ExpandedKeys expanded;
};

// out = w2 (silu(gate) * up), gate and up from w13 x.
struct MlpParams {
  const void* x = nullptr;         // [tokens, dim] act, contiguous
  const PackedWeight* w13 = nullptr;  // [2 * width, dim]: gate rows, then up; null: there is no MLP
  const PackedWeight* w2 = nullptr;   // [dim, width]
  int64_t width = 0;
  void* out = nullptr;             // [tokens, dim] act
  int tokens = 0;
};

enum class RouterScore : uint8_t { kSoftmax, kSigmoid };
enum class GroupScore : uint8_t { kMax, kTopTwoSum };

// FP32 throughout. Choice: top_k of score + bias within the best limited_groups groups, excluded
// groups at -inf, ties to the lower index. Weight: the unbiased score, divided by the sum over the
// chosen ones when `normalise`, times route_scale.
struct RouteParams {
  const void* x = nullptr;         // [tokens, dim] act
  const float* gate = nullptr;     // [experts, dim]
  const float* bias = nullptr;     // [experts] or null
  const int32_t* positions = nullptr;  // [tokens]; -1: its ids become -1. Null: all are somebody's
  int tokens = 0;
  int64_t dim = 0;
  int experts = 0;
  int top_k = 0;
  int groups = 1;
  int limited_groups = 1;
  RouterScore score = RouterScore::kSoftmax;
  GroupScore group_score = GroupScore::kMax;
  bool normalise = false;
  float route_scale = 1;
  int32_t* ids = nullptr;          // [tokens, top_k], best first
  float* weights = nullptr;        // [tokens, top_k]
};

// out[t] = shared(x[t]) + sum over j of weights[t, j] * expert(ids[t, j])(x[t]), j ascending; ids
// that are -1 or of another rank are skipped.
struct MoeParams {
  const void* x = nullptr;         // [tokens, dim] act
  const int32_t* ids = nullptr;    // [tokens, top_k] expert or -1
  const float* weights = nullptr;  // [tokens, top_k]
  const int32_t* local_index = nullptr;  // [experts] index in w13 and w2, -1: of another rank
  const PackedWeight* w13 = nullptr;  // [local experts] of [2 * width, dim]: gate rows, then up
  const PackedWeight* w2 = nullptr;   // [local experts] of [dim, width]
  MlpParams shared;                // w13, w2 and width only; without w13 nothing is added
  void* out = nullptr;             // [tokens, dim] act
  int tokens = 0;
  int top_k = 0;
  int experts = 0;                 // of the model
  int64_t dim = 0;
  int64_t width = 0;
};

// out[t] (+)= sum over j of rows[row_of[t, j]], j ascending, row_of -1 skipped.
struct AddRowsParams {
  const void* rows = nullptr;      // [rows, dim] act
  const int32_t* row_of = nullptr; // [tokens, width]
  void* out = nullptr;             // [tokens, dim] act
  bool accumulate = false;         // add to out, or overwrite it
  int tokens = 0;
  int width = 0;
  int64_t dim = 0;
};

// Row i of `from` to row i of `to`, which is it or does not overlap it.
struct CopyRowsParams {
  const void* from = nullptr;
  int64_t from_stride = 0;         // bytes
  void* to = nullptr;
  int64_t to_stride = 0;           // bytes
  int rows = 0;
  int64_t bytes = 0;               // of a row
};

// One drawn token. `logprob` is set when SamplingParams::logprobs >= 0.
struct SampledToken {
  int32_t token = 0;
  float logprob = 0;
  int32_t non_finite = 0;          // 1: logits had NaN or Inf, the token is meaningless (0)
};

// Draws one token per row of complete logits. Ids >= vocab_limit are treated as -inf.
struct SampleParams {
  const float* logits = nullptr;   // [rows, vocab]
  int rows = 0;
  int64_t vocab = 0;
  int64_t vocab_limit = 0;
  const SamplingParams* sampling = nullptr;  // [rows]
  const int32_t* positions = nullptr;        // [rows] position of the drawn token in its sequence
  SampledToken* out = nullptr;               // [rows]
  TokenLogprob* top = nullptr;               // [rows, kMaxTopLogprobs], best first; of each row
                                             // SamplingParams::logprobs entries are written
  bool any_top = false;            // whether a row asks for such entries
  bool all_greedy = false;         // every row has temperature 0
};

// last_tokens[slots[i]] = tokens[i].token.
struct StoreTokensParams {
  const SampledToken* tokens = nullptr;  // [rows]
  const int32_t* slots = nullptr;        // [rows]; -1: nobody's
  int32_t* last_tokens = nullptr;        // [slots of the group]
  int rows = 0;
};

// out[i] = log softmax(logits[i])[targets[i]], over ids below vocab_limit; FP32, NaN passes
// through.
struct TokenLogprobParams {
  const float* logits = nullptr;   // [rows, vocab]
  const int32_t* targets = nullptr;  // [rows]
  int rows = 0;
  int64_t vocab = 0;
  int64_t vocab_limit = 0;
  float* out = nullptr;            // [rows]
};

}  // namespace hadal
