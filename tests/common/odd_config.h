#pragma once

#include "common/model_config.h"

namespace hadal::testing {

// Small and awkward: 12 heads, MLPs and a vocabulary that no number of ranks divides, ragged
// scales.
inline ModelConfig OddConfig(DType dtype) {
  ModelConfig config;
  config.dtype = dtype;
  config.scale_block = 16;
  config.vocab_size = 101;
  config.dim = 70;
  config.inter_dim = 130;
  config.moe_inter_dim = 13;
  config.n_layers = 3;
  config.n_dense_layers = 1;
  config.n_heads = 12;
  config.n_routed_experts = 12;
  config.n_shared_experts = 3;
  config.topk_method = TopkMethod::kNoAuxTc;
  config.q_lora_rank = 50;
  config.kv_lora_rank = 33;
  config.qk_nope_head_dim = 10;
  config.qk_rope_head_dim = 6;
  config.v_head_dim = 7;
  return config;
}

}  // namespace hadal::testing
