#pragma once

#include <memory>
#include <vector>

#include "common/layout.h"
#include "common/model_config.h"
#include "kernels/backend.h"
#include "worker/model/model.h"

namespace hadal {

// The element `count` activations after `base`.
inline void* Offset(void* base, int64_t count, DType dtype) {
  return static_cast<uint8_t*>(base) + count * DTypeSize(dtype);
}

// Of the latent cache.
DType CacheDType(const ModelConfig& config);
int64_t LayerCacheBytes(const ModelConfig& config, int64_t blocks);

// This rank's piece of the shared experts' width: of T pieces; with a FixedExchange, which brings all
// tokens to all ranks, of T * D, and of FP8 in whole scale blocks.
Range SharedWidth(const ModelConfig& config, const Layout& layout, const ModelOptions& options);

// Rows that ExpertExchange makes room for.
int64_t ExchangeRows(const ModelConfig& config, const Layout& layout, const ModelOptions& options);

// Every activation buffer of a step, allocated once. N = max_step_tokens; "act" is the backend's
// activation type. Heads and widths are this rank's.
struct Workspace {
  using Buffer = std::unique_ptr<DeviceBuffer>;

  Buffer residual;      // [N, dim] float whatever act is: it would be rounded at every block
  Buffer spare_residual;  // the same: a norm reads one and writes its sum to the other
  Buffer normed;        // [N or all slices, dim] act: input of a block
  Buffer delta;         // [N or all slices, dim] act: a block's output, added to the residual by the
                        // next norm
  Buffer attn_in;       // [N, q_in + latent_dim] act, see AttentionWeights::in
  Buffer q_normed;      // [N, q_lora_rank] act
  Buffer q;             // [N, heads, qk_head_dim] act; q_lora only, else part of attn_in
  Buffer q_latent;      // [N, heads, kv_lora_rank] act, decode rows
  Buffer o_latent;      // [N, heads, kv_lora_rank] act, decode rows
  Buffer attn_out;      // [N, heads, v_head_dim] act
  Buffer expert_ids;    // [N, top_k] int32
  Buffer expert_weights;  // [N, top_k] float
  Buffer local_index;   // [experts] int32: index among this rank's, -1
  Buffer last_tokens;   // [max_rows] int32, by slot
  Buffer logit_hidden;  // [max_step_logits, dim] float
  Buffer logit_delta;   // [max_step_logits, dim] act
  Buffer logit_normed;  // [max_step_logits, dim] act
  Buffer own_logits;    // [max_step_logits, own vocabulary] float; T > 1 only
  Buffer pieces;        // the T ranks' own_logits, one after the other; T > 1 only
  Buffer logits;        // [max_step_logits, vocabulary] float
  Buffer cos_sin;       // [max_seq_len, rope_dim / 2, 2] float
};

// Allocates everything; `backend` null only counts. Returns the bytes.
int64_t MakeWorkspace(const ModelConfig& config, const Layout& layout, const ModelOptions& options,
                      DType activation, Backend* backend, Workspace* workspace);

// The largest operands of a step's ops.
OpLimits StepOpLimits(const ModelConfig& config, const Layout& layout, const ModelOptions& options);

// cos and sin of position * theta_i, [max_seq_len, rope_dim / 2, 2], scaled by the ratio of YaRN's
// two magnitudes (1 for every released model).
std::vector<float> RopeTable(const ModelConfig& config);

}  // namespace hadal
