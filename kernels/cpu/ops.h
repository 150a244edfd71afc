#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"

namespace hadal {

struct GemmKernels;

const GemmKernels& GemmKernelsFor(CpuIsa isa);

// What every op of the CPU backend runs with. Ops allocate only from the arenas: `shared` for what
// the calling thread prepares before a loop, scratch[thread] inside it.
struct CpuContext {
  CpuContext(ThreadPool* thread_pool, CpuIsa path)
      : pool(thread_pool), isa(path), gemm(&GemmKernelsFor(path)),
        scratch(static_cast<size_t>(thread_pool->size())) {}

  ThreadPool* pool;
  CpuIsa isa;
  const GemmKernels* gemm;
  ScratchArena shared;
  std::vector<ScratchArena> scratch;  // [pool->size()]
};

// In place on x[t, h, 0..rope_dim): pairs (2i, 2i + 1) turn by position[t] * theta_i.
struct RopeParams {
  float* x = nullptr;            // first rotated element of token 0, head 0
  int64_t x_stride = 0;          // between tokens
  int64_t head_stride = 0;
  int heads = 0;
  int rope_dim = 0;
  const int32_t* positions = nullptr;  // [tokens]
  const float* cos_sin = nullptr;      // [max_seq_len, rope_dim / 2, 2]
  int tokens = 0;
};

// Rows sorted by local expert; the expert MLP of each row, not weighted:
// row_out[r] = w2[e] (silu(gate) * up), gate and up from w13[e] x[row_token[r]].
struct MoeMlpParams {
  const float* x = nullptr;        // [tokens, dim]
  const CpuPackedWeight* const* w13 = nullptr;  // [experts], each [2 * width, dim]
  const CpuPackedWeight* const* w2 = nullptr;   // [experts], each [dim, width]
  int experts = 0;                 // on this rank
  const int32_t* expert_offsets = nullptr;   // [experts + 1] into the rows
  const int32_t* row_token = nullptr;        // [rows] row of x
  float* row_out = nullptr;        // [rows, dim]
  int rows = 0;
  int64_t dim = 0;
  int64_t width = 0;
};

// out[t] (+)= sum over j of weights[t, j] * row_out[row_of[t, j]], j ascending, row_of -1 skipped.
struct MoeCombineParams {
  const float* row_out = nullptr;  // [rows, dim]
  const int32_t* row_of = nullptr; // [tokens, top_k]
  const float* weights = nullptr;  // [tokens, top_k]; null: all 1
  float* out = nullptr;            // [tokens, dim]
  bool accumulate = false;
  int tokens = 0;
  int top_k = 0;
  int64_t dim = 0;
};

// The parts that ops are made of.
void Rope(const RopeParams& p, CpuContext& context);
void StoreLatent(const MlaInputParams& p, CpuContext& context);
void MoeMlp(const MoeMlpParams& p, CpuContext& context);
void MoeCombine(const MoeCombineParams& p, CpuContext& context);

// The ops of kernels/backend.h, one free function each. Activations are float.
void Embed(const EmbedParams& p, CpuContext& context);
void RmsNorm(const RmsNormParams& p, CpuContext& context);
void MatMul(const MatMulParams& p, CpuContext& context);
void HeadMatMul(const HeadMatMulParams& p, CpuContext& context);
void MlaInput(const MlaInputParams& p, CpuContext& context);
void MlaDecode(const MlaDecodeParams& p, CpuContext& context);
void MlaPrefill(const MlaPrefillParams& p, CpuContext& context);
// Of all heads and one block of positions in ExpandedKeys.
int64_t ExpandedTileFloats(int heads, int nope_dim, int rope_dim, int v_dim);
void Mlp(const MlpParams& p, CpuContext& context);
void Route(const RouteParams& p, CpuContext& context);
void Moe(const MoeParams& p, CpuContext& context);
void AddRows(const AddRowsParams& p, CpuContext& context);
void Sample(const SampleParams& p, CpuContext& context);
void StoreTokens(const StoreTokensParams& p, CpuContext& context);
void TokenLogprobs(const TokenLogprobParams& p, CpuContext& context);

// On the calling thread alone: y[i, :] = x[i, :] w^T for m rows, with the same bits as MatMul().
// x: [m, w.k], y: [m, w.n]; strides count floats.
void MatMulSerial(const float* x, int64_t x_stride, int m, const CpuPackedWeight& w, float* y,
                  int64_t y_stride, const GemmKernels& kernels, ScratchArena& scratch);

// On the calling thread alone: out[i] = silu(gate[i]) * up[i]; out may be gate or up. An element
// has the same bits wherever it stands in the array.
void SiluMulSerial(const float* gate, const float* up, float* out, int64_t n, CpuIsa isa);

}  // namespace hadal
