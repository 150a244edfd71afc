#pragma once

#include <memory>
#include <vector>

#include "common/layout.h"
#include "common/model_config.h"
#include "kernels/backend.h"
#include "worker/model/model.h"

namespace hadal {

// Of the latent cache.
DType CacheDType(const ModelConfig& config);
int64_t LayerCacheBytes(const ModelConfig& config, int64_t blocks);

// Rows that ExpertExchange makes room for.
int64_t ExchangeRows(const ModelConfig& config, const Layout& layout, const ModelOptions& options);

// Every activation buffer of a step, allocated once. N = max_step_tokens; "act" is the backend's
// activation type. Heads and widths are this rank's.
struct Workspace {
  using Buffer = std::unique_ptr<DeviceBuffer>;

  Buffer residual;      // [N, dim] act
  Buffer normed;        // [N, dim] act: input of a block
  Buffer delta;         // [N, dim] act: a block's output, added to the residual by the next norm
  Buffer latent_in;     // [N, q_lora_rank + latent_dim] act
  Buffer q_normed;      // [N, q_lora_rank] act
  Buffer q;             // [N, heads, qk_head_dim] act
  Buffer q_latent;      // [N, heads, kv_lora_rank] act, decode rows
  Buffer o_latent;      // [N, heads, kv_lora_rank] act, decode rows
  Buffer attn_out;      // [N, heads, v_head_dim] act
  Buffer gate_up;       // [N, 2 * widest MLP] act
  Buffer mlp_act;       // [N, widest MLP] act
  Buffer row_out;       // [N * top_k, dim] act: expert outputs, only with one D group
  Buffer token_ids;     // [N] int32
  Buffer positions;     // [N] int32
  Buffer cache_rows;    // [N] int64
  Buffer logit_hidden;  // [max_step_logits, dim] act
  Buffer logit_delta;   // [max_step_logits, dim] act
  Buffer logit_normed;  // [max_step_logits, dim] act
  Buffer logits;        // [max_step_logits, own vocabulary] act
  Buffer cos_sin;       // [max_seq_len, rope_dim / 2, 2] float
};

// Allocates everything; `backend` null only counts. Returns the bytes.
int64_t MakeWorkspace(const ModelConfig& config, const Layout& layout, const ModelOptions& options,
                      DType activation, Backend* backend, Workspace* workspace);

// cos and sin of position * theta_i, [max_seq_len, rope_dim / 2, 2], scaled by the ratio of YaRN's
// two magnitudes (1 for every released model).
std::vector<float> RopeTable(const ModelConfig& config);

}  // namespace hadal
