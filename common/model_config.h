#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "common/dtype.h"
#include "common/layout.h"
#include "common/status.h"

namespace hadal {

// A larger config.json or generation_config.json is refused.
inline constexpr uint64_t kMaxConfigBytes = 16 << 20;

enum class ScoreFunc { kSoftmax, kSigmoid };
enum class TopkMethod { kGreedy, kGroupLimitedGreedy, kNoAuxTc };

// YaRN context extension, taken from the checkpoint's rope_scaling alone, never from the length of a
// buffer.
struct YarnConfig {
  float factor = 40;
  float beta_fast = 32;
  float beta_slow = 1;
  float mscale = 1;
  float mscale_all_dim = 1;
  int64_t original_seq_len = 4096;
  bool operator==(const YarnConfig&) const = default;
};

// One model's shape. Field names are those of DeepSeek's reference; the Hugging Face name is in the
// comment where it differs. Both spellings parse into this struct.
struct ModelConfig {
  std::string architecture;           // "DeepseekV2ForCausalLM" or "DeepseekV3ForCausalLM"
  std::string model_type;             // "deepseek_v2", "deepseek_v3", "kimi_k2"
  DType dtype = DType::kBF16;         // of the large matrices; kF8E4M3 has block scales
  int64_t scale_block = 128;          // quantization_config.weight_block_size, square
  std::string scale_fmt;              // "" or "ue8m0"
  int64_t vocab_size = 102400;
  int64_t dim = 2048;                 // hidden_size
  int64_t inter_dim = 10944;          // intermediate_size, dense layers
  int64_t moe_inter_dim = 1408;       // moe_intermediate_size
  int64_t n_layers = 27;              // num_hidden_layers, without MTP layers
  int64_t n_dense_layers = 1;         // first_k_dense_replace
  int64_t n_heads = 16;               // num_attention_heads
  int64_t n_routed_experts = 64;
  int64_t n_shared_experts = 2;
  int64_t n_activated_experts = 6;    // num_experts_per_tok
  int64_t n_expert_groups = 1;        // n_group
  int64_t n_limited_groups = 1;       // topk_group
  ScoreFunc score_func = ScoreFunc::kSoftmax;     // scoring_func
  TopkMethod topk_method = TopkMethod::kGreedy;
  bool norm_topk_prob = false;
  float route_scale = 1;              // routed_scaling_factor
  int64_t q_lora_rank = 0;            // 0: plain q projection
  int64_t kv_lora_rank = 512;
  int64_t qk_nope_head_dim = 128;
  int64_t qk_rope_head_dim = 64;
  int64_t v_head_dim = 128;
  float rope_theta = 10000;
  std::optional<YarnConfig> yarn;     // rope_scaling
  float norm_eps = 1e-6f;             // rms_norm_eps
  float latent_norm_eps = 1e-6f;      // q_a_layernorm and kv_a_layernorm: 1e-6 whatever norm_eps is
  int64_t max_seq_len = 16384;        // max_position_embeddings
  int64_t n_mtp_layers = 0;           // num_nextn_predict_layers; present in the files, not loaded
  bool tie_embeddings = false;        // refused when true
  std::vector<int32_t> eos_ids;       // generation_config.json before config.json
  int32_t bos_id = -1;                // -1: none

  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int64_t latent_dim() const { return kv_lora_rank + qk_rope_head_dim; }
  int64_t shared_inter_dim() const { return n_shared_experts * moe_inter_dim; }
  bool is_moe_layer(int64_t layer) const { return layer >= n_dense_layers; }
  bool has_gate_bias() const { return topk_method == TopkMethod::kNoAuxTc; }
  // Scale applied to q.k before the softmax: qk_head_dim^-1/2, times m^2 with YaRN, where
  // m = 0.1 mscale_all_dim ln(factor) + 1.
  float SoftmaxScale() const;
  // Rotation speeds theta_i, i in [0, qk_rope_head_dim / 2), after YaRN.
  std::vector<float> RopeFrequencies() const;
  bool operator==(const ModelConfig&) const = default;
};

// Parses a config of either naming scheme. INVALID_ARGUMENT lists every unknown architecture,
// unsupported value, wrong type and missing field, one line each.
StatusOr<ModelConfig> ParseModelConfig(const nlohmann::json& config,
                                       const nlohmann::json* generation_config);

// Reads config.json and, when there is one, generation_config.json of a model directory.
StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir);

// Why a T x D layout cannot hold this model, with the list of those of the same world size that can.
Status ValidateLayout(const ModelConfig& config, const Layout& layout);

// The same for every copy of one checkpoint and configuration, different for others: joins ranks to each
// other and to a server that serves the same model. Of the weights it reads a sample. Hex.
StatusOr<std::string> ModelFingerprint(const std::string& model_dir);

}  // namespace hadal
