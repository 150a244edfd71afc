#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace hadal::testing {

inline constexpr const char* kV2LiteConfig = R"({
  "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
  "attention_bias": false, "hidden_act": "silu", "moe_layer_freq": 1, "tie_word_embeddings": false,
  "ep_size": 1, "aux_loss_alpha": 0.001, "vocab_size": 102400, "hidden_size": 2048,
  "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
  "first_k_dense_replace": 1, "num_attention_heads": 16, "num_key_value_heads": 16,
  "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 1,
  "topk_group": 1, "scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": false,
  "routed_scaling_factor": 1.0, "q_lora_rank": null, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
  "qk_rope_head_dim": 64, "v_head_dim": 128, "rms_norm_eps": 1e-06, "rope_theta": 10000,
  "max_position_embeddings": 163840, "torch_dtype": "bfloat16", "bos_token_id": 100000,
  "eos_token_id": 100001, "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32,
  "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707,
  "original_max_position_embeddings": 4096}})";

// What each model changes, as merge patches one upon another.
inline constexpr const char* kV2Patch = R"({
  "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
  "num_hidden_layers": 60, "num_attention_heads": 128, "num_key_value_heads": 128,
  "n_routed_experts": 160, "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy",
  "routed_scaling_factor": 16.0, "q_lora_rank": 1536})";
inline constexpr const char* kMoonlightPatch = R"({
  "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
  "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": true,
  "vocab_size": 163840, "intermediate_size": 11264, "routed_scaling_factor": 2.446,
  "rms_norm_eps": 1e-05, "rope_theta": 50000.0, "max_position_embeddings": 8192,
  "num_nextn_predict_layers": 0, "bos_token_id": 163584, "eos_token_id": 163586,
  "rope_scaling": null})";
inline constexpr const char* kV3Patch = R"({
  "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
  "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": true,
  "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
  "moe_intermediate_size": 2048, "num_hidden_layers": 61, "first_k_dense_replace": 3,
  "num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 256,
  "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
  "routed_scaling_factor": 2.5, "q_lora_rank": 1536, "num_nextn_predict_layers": 1,
  "bos_token_id": 0, "eos_token_id": 1, "rope_scaling": {"mscale": 1.0, "mscale_all_dim": 1.0},
  "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
  "weight_block_size": [128, 128]}})";
inline constexpr const char* kV31Patch = R"({"quantization_config": {"scale_fmt": "ue8m0"}})";
inline constexpr const char* kKimiK2Patch = R"({
  "model_type": "kimi_k2", "vocab_size": 163840, "first_k_dense_replace": 1,
  "num_attention_heads": 64, "num_key_value_heads": 64, "n_routed_experts": 384, "n_group": 1,
  "topk_group": 1, "routed_scaling_factor": 2.827, "rope_theta": 50000.0,
  "max_position_embeddings": 131072, "num_nextn_predict_layers": 0, "bos_token_id": 163584,
  "eos_token_id": 163585, "rope_scaling": {"factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0}})";

// config.json of a released model under Hugging Face's names: "v2_lite", "v2", "v3", "v3.1",
// "moonlight" or "kimi_k2".
inline nlohmann::json HfConfig(const std::string& name) {
  static const std::map<std::string, std::vector<const char*>> kPatches = {
      {"v2_lite", {}},
      {"v2", {kV2Patch}},
      {"moonlight", {kMoonlightPatch}},
      {"v3", {kV3Patch}},
      {"v3.1", {kV3Patch, kV31Patch}},
      {"kimi_k2", {kV3Patch, kKimiK2Patch}}};
  nlohmann::json config = nlohmann::json::parse(kV2LiteConfig);
  for (const char* patch : kPatches.at(name)) config.merge_patch(nlohmann::json::parse(patch));
  return config;
}

}  // namespace hadal::testing
