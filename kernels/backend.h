#pragma once

// The seam between the model and the machine: one plain parameter struct per op, two
// implementations (kernels/cpu, kernels/cuda). All calls of one Backend come from one thread, in
// stream order; an op may return before it has run. Activations ("act") have the type
// activation_dtype(): float on the CPU. Shapes are row-major; a stride counts elements.
//
// Batch invariance: an output row depends on its own inputs only, bit for bit. No op may choose its
// order of accumulation by the number of rows.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "common/step_plan.h"

namespace hadal {

// A piece of a checkpoint matrix in host memory, or of several stacked along n.
struct WeightSource {
  const void* data = nullptr;  // [n, k] of dtype; [k, n] when transposed
  DType dtype = DType::kBF16;
  int64_t n = 0;               // outputs
  int64_t k = 0;               // inputs
  int64_t row_stride = 0;      // elements between rows of `data`
  bool transposed = false;     // `data` is [k, n]: element (n, k) lies at data[k * row_stride + n]
  // kF8E4M3: true value = element * scale. The whole matrix's block scales, row-major; the element
  // at row r, column c of `data` uses
  //   scale[((row_offset + r) / scale_block) * scale_stride + (col_offset + c) / scale_block].
  const float* scale = nullptr;
  int64_t scale_stride = 0;
  int64_t scale_block = 128;
  int64_t row_offset = 0;      // where the slice starts in the whole matrix
  int64_t col_offset = 0;
};

// A matrix [n, k] in the backend's own layout. FP8 stays at one byte an element.
struct PackedWeight {
  virtual ~PackedWeight() = default;
  int64_t n = 0;
  int64_t k = 0;
  DType dtype = DType::kBF16;
  int64_t bytes = 0;  // what it occupies, scales and padding included
};

// Device memory; freed with the object. Not initialised.
struct DeviceBuffer {
  virtual ~DeviceBuffer() = default;
  void* data = nullptr;
  int64_t bytes = 0;
  template <typename T>
  T* as() const { return static_cast<T*>(data); }
};

struct EmbedParams {
  const int32_t* ids = nullptr;  // [tokens]
  int tokens = 0;
  const void* table = nullptr;   // [vocab_end - vocab_begin, dim] of table_dtype
  DType table_dtype = DType::kBF16;
  int32_t vocab_begin = 0;       // ids outside [vocab_begin, vocab_end) give a row of zeros
  int32_t vocab_end = 0;
  int64_t dim = 0;
  void* out = nullptr;           // [tokens, dim] act
};

// residual += delta (when delta is set); out = weight * residual / sqrt(mean(residual^2) + eps).
struct RmsNormParams {
  void* residual = nullptr;      // [tokens, dim] act, stride x_stride
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
  void* y = nullptr;             // [m, n] act, stride y_stride
  int64_t y_stride = 0;
  int m = 0;
};

// y[t, h] = x[t, h] w[h]^T for every head: the absorbed projections of MLA.
struct HeadMatMulParams {
  const void* x = nullptr;       // [m, heads, k] act
  int64_t x_stride = 0;          // between tokens
  int64_t x_head_stride = 0;
  const PackedWeight* const* w = nullptr;  // [heads], each [n, k]
  void* y = nullptr;             // [m, heads, n] act
  int64_t y_stride = 0;
  int64_t y_head_stride = 0;
  int m = 0;
  int heads = 0;
};

// In place on x[t, h, 0..rope_dim): pairs (2i, 2i + 1) turn by position[t] * theta_i.
struct RopeParams {
  void* x = nullptr;             // act; first rotated element of token 0, head 0
  int64_t x_stride = 0;          // between tokens
  int64_t head_stride = 0;
  int heads = 0;
  int rope_dim = 0;
  const int32_t* positions = nullptr;  // [tokens]
  const float* cos_sin = nullptr;      // [max_seq_len, rope_dim / 2, 2]
  int tokens = 0;
};

// Writes one row of the latent cache per token: [rmsnorm(c) * weight ; rope(k_pe)].
struct StoreLatentParams {
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
  int32_t num_tokens = 0;
  int32_t start_pos = 0;
  const int32_t* blocks = nullptr;  // block table, covering start_pos + num_tokens positions
};

// Absorbed form: scores = (q_latent . c + q_rope . k_pe) * scale, out = softmax(scores) c.
struct MlaDecodeParams {
  const void* q_latent = nullptr;  // [tokens, heads, latent_rank] act, contiguous
  const void* q_rope = nullptr;    // act; element of token 0, head 0
  int64_t q_rope_stride = 0;       // between tokens
  int64_t q_rope_head_stride = 0;
  void* out = nullptr;             // [tokens, heads, latent_rank] act, contiguous
  const AttentionRow* rows = nullptr;
  int num_rows = 0;
  const void* cache = nullptr;     // [blocks * kBlockSize, latent_rank + rope_dim] of cache_dtype
  DType cache_dtype = DType::kBF16;
  int heads = 0;
  int latent_rank = 0;
  int rope_dim = 0;
  float scale = 1;
};

// Up-projected form: k_nope = c w_uk^T and v = c w_uv^T per head, made a tile of keys at a time.
struct MlaPrefillParams {
  const void* q = nullptr;         // [tokens, heads, nope_dim + rope_dim] act, contiguous
  void* out = nullptr;             // [tokens, heads, v_dim] act, contiguous
  const AttentionRow* rows = nullptr;
  int num_rows = 0;
  const void* cache = nullptr;     // as in MlaDecodeParams
  DType cache_dtype = DType::kBF16;
  const PackedWeight* const* w_uk = nullptr;  // [heads], each [nope_dim, latent_rank]
  const PackedWeight* const* w_uv = nullptr;  // [heads], each [v_dim, latent_rank]
  int heads = 0;
  int latent_rank = 0;
  int nope_dim = 0;
  int rope_dim = 0;
  int v_dim = 0;
  float scale = 1;
};

// out = silu(gate) * up.
struct SiluMulParams {
  const void* gate_up = nullptr;   // [rows, 2 * width] act: gate, then up
  void* out = nullptr;             // [rows, width] act
  int rows = 0;
  int64_t width = 0;
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

// Rows sorted by local expert; the expert MLP of each row, not weighted:
// row_out[r] = w2[e] (silu(gate) * up), gate and up from w13[e] x[row_token[r]].
struct MoeMlpParams {
  const void* x = nullptr;         // [tokens, dim] act
  const PackedWeight* const* w13 = nullptr;  // [experts], each [2 * width, dim]: gate rows, then up
  const PackedWeight* const* w2 = nullptr;   // [experts], each [dim, width]
  int experts = 0;                 // on this rank
  const int32_t* expert_offsets = nullptr;   // [experts + 1] into the rows
  const int32_t* row_token = nullptr;        // [rows] row of x
  void* row_out = nullptr;         // [rows, dim] act
  int rows = 0;
  int64_t dim = 0;
  int64_t width = 0;
};

// out[t] (+)= sum over j of weights[t, j] * row_out[row_of[t, j]], j ascending, row_of -1 skipped.
struct MoeCombineParams {
  const void* row_out = nullptr;   // [rows, dim] act
  const int32_t* row_of = nullptr; // [tokens, top_k]
  const float* weights = nullptr;  // [tokens, top_k]
  void* out = nullptr;             // [tokens, dim] act
  bool accumulate = false;
  int tokens = 0;
  int top_k = 0;
  int64_t dim = 0;
};

// Draws one token per row of complete logits. Ids >= vocab_limit are treated as -inf.
struct SampleParams {
  const float* logits = nullptr;   // [rows, vocab]
  int rows = 0;
  int64_t vocab = 0;
  int64_t vocab_limit = 0;
  const SamplingParams* sampling = nullptr;  // [rows]
  const int32_t* positions = nullptr;        // [rows] position of the drawn token in its sequence
  SampleResult* results = nullptr;           // [rows]; fills all but slot
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

class Backend {
 public:
  virtual ~Backend() = default;

  // For logs: "cpu avx512_bf16, 2 threads".
  virtual std::string name() const = 0;
  virtual DType activation_dtype() const = 0;

  // Throws std::bad_alloc, naming the bytes in the log, when memory is exhausted.
  virtual std::unique_ptr<DeviceBuffer> Allocate(int64_t bytes) = 0;
  virtual void CopyToDevice(void* device, const void* host, int64_t bytes) = 0;
  virtual void CopyToHost(void* host, const void* device, int64_t bytes) = 0;

  // Copies the sources, stacked along n (same k, dtype, col_offset), into the backend's layout.
  // REQUIRES: at least one source.
  virtual std::unique_ptr<PackedWeight> Pack(const std::vector<WeightSource>& sources) = 0;
  // What Pack() will occupy for an [n, k] matrix.
  virtual int64_t PackedBytes(int64_t n, int64_t k, DType dtype) const = 0;

  virtual void Embed(const EmbedParams& p) = 0;
  virtual void RmsNorm(const RmsNormParams& p) = 0;
  virtual void MatMul(const MatMulParams& p) = 0;
  virtual void HeadMatMul(const HeadMatMulParams& p) = 0;
  virtual void Rope(const RopeParams& p) = 0;
  virtual void StoreLatent(const StoreLatentParams& p) = 0;
  virtual void MlaDecode(const MlaDecodeParams& p) = 0;
  virtual void MlaPrefill(const MlaPrefillParams& p) = 0;
  virtual void SiluMul(const SiluMulParams& p) = 0;
  virtual void Route(const RouteParams& p) = 0;
  virtual void MoeMlp(const MoeMlpParams& p) = 0;
  virtual void MoeCombine(const MoeCombineParams& p) = 0;
  virtual void Sample(const SampleParams& p) = 0;
  virtual void TokenLogprobs(const TokenLogprobParams& p) = 0;

  // Returns when every op called so far has run.
  virtual void Synchronize() = 0;
};

}  // namespace hadal
