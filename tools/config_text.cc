#include "tools/config_text.h"

#include <nlohmann/json.hpp>

namespace hadal {
namespace {
using nlohmann::ordered_json;

// A float as it was written: 0.707, not 0.7070000171661377.
double Written(float value) { return std::stod(fmt::format("{}", value)); }

std::string_view Name(DType dtype) {
  return dtype == DType::kF8E4M3 ? "fp8" : dtype == DType::kBF16 ? "bf16" : "fp32";
}
std::string_view Name(TopkMethod method) {
  return method == TopkMethod::kGreedy    ? "greedy"
         : method == TopkMethod::kNoAuxTc ? "noaux_tc"
                                          : "group_limited_greedy";
}

void AddRope(const ModelConfig& c, ordered_json* out) {
  const YarnConfig yarn = c.yarn.value_or(YarnConfig{.factor = 1});
  (*out)["original_seq_len"] = yarn.original_seq_len;
  (*out)["rope_theta"] = Written(c.rope_theta);
  (*out)["rope_factor"] = Written(yarn.factor);
  (*out)["beta_fast"] = Written(yarn.beta_fast);
  (*out)["beta_slow"] = Written(yarn.beta_slow);
  (*out)["mscale"] = Written(yarn.mscale_all_dim);
}

std::string Text(const ordered_json& config) { return config.dump(2) + "\n"; }

}  // namespace

std::string ReferenceConfigText(const ModelConfig& c) {
  ordered_json out = {{"architecture", c.architecture},
                      {"model_type", c.model_type},
                      {"max_batch_size", 8},
                      {"max_seq_len", c.max_seq_len},
                      {"dtype", Name(c.dtype)}};
  out["scale_fmt"] = c.scale_fmt.empty() ? ordered_json() : ordered_json(c.scale_fmt);
  out.update({{"scale_block", c.scale_block},
              {"vocab_size", c.vocab_size},
              {"dim", c.dim},
              {"inter_dim", c.inter_dim},
              {"moe_inter_dim", c.moe_inter_dim},
              {"n_layers", c.n_layers},
              {"n_dense_layers", c.n_dense_layers},
              {"n_mtp_layers", 0},
              {"n_heads", c.n_heads},
              {"n_routed_experts", c.n_routed_experts},
              {"n_shared_experts", c.n_shared_experts},
              {"n_activated_experts", c.n_activated_experts},
              {"n_expert_groups", c.n_expert_groups},
              {"n_limited_groups", c.n_limited_groups},
              {"score_func", c.score_func == ScoreFunc::kSigmoid ? "sigmoid" : "softmax"},
              {"topk_method", Name(c.topk_method)},
              {"norm_topk_prob", c.norm_topk_prob},
              {"route_scale", Written(c.route_scale)},
              {"q_lora_rank", c.q_lora_rank},
              {"kv_lora_rank", c.kv_lora_rank},
              {"qk_nope_head_dim", c.qk_nope_head_dim},
              {"qk_rope_head_dim", c.qk_rope_head_dim},
              {"v_head_dim", c.v_head_dim},
              {"norm_eps", Written(c.norm_eps)},
              {"latent_norm_eps", Written(c.latent_norm_eps)}});
  AddRope(c, &out);
  if (c.bos_id >= 0) out["bos_id"] = c.bos_id;
  out["eos_ids"] = c.eos_ids;
  return Text(out);
}

StatusOr<BlockShape> QuantizationBlock(const std::string& config_text) {
  const auto config = nlohmann::json::parse(config_text);
  const auto found = config.is_object() ? config.find("quantization_config") : config.end();
  if (!config.is_object()) return FailedPrecondition("config.json: must be a JSON object");
  if (found == config.end() || found->is_null()) return BlockShape{};
  if (!found->is_object() || found->value("quant_method", nlohmann::json()) != "fp8") {
    return FailedPrecondition(
        "config.json: quantization_config.quant_method must be \"fp8\"; only "
        "e4m3 weights with block scales can be cast");
  }
  const auto block = found->find("weight_block_size");
  if (block == found->end()) return BlockShape{};
  const auto size = [&](size_t i) -> int64_t {
    const bool good = block->is_array() && block->size() == 2 && (*block)[i].is_number_unsigned();
    return good && (*block)[i] <= 4096 ? (*block)[i].get<int64_t>() : 0;
  };
  if (size(0) < 1 || size(1) < 1) {
    return FailedPrecondition(
        "config.json: quantization_config.weight_block_size must be two numbers "
        "in [1, 4096]");
  }
  return BlockShape{size(0), size(1)};
}

std::string ConfigTextForBf16(const std::string& config_text) {
  ordered_json config = ordered_json::parse(config_text);
  config.erase("quantization_config");
  const bool new_name = config.contains("dtype") && !config.contains("torch_dtype");
  config[new_name ? "dtype" : "torch_dtype"] = "bfloat16";
  return Text(config);
}

std::string ConfigTextForF8E4M3(const std::string& config_text, BlockShape block,
                                bool power_of_two) {
  ordered_json config = ordered_json::parse(config_text);
  ordered_json quantization = {{"activation_scheme", "dynamic"},
                               {"fmt", "e4m3"},
                               {"quant_method", "fp8"},
                               {"weight_block_size", {block.rows, block.columns}}};
  if (power_of_two) quantization["scale_fmt"] = "ue8m0";
  config["quantization_config"] = quantization;
  return Text(config);
}

}  // namespace hadal
