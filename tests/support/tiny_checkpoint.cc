#include "tests/support/tiny_checkpoint.h"

#include <bit>
#include <cmath>
#include <random>
#include <span>
#include <vector>

#include <nlohmann/json.hpp>

#include "common/atomic_file.h"
#include "common/safetensors_writer.h"
#include "common/tensor_inventory.h"

namespace hadal::testing {
namespace {
using nlohmann::json;

json RopeScaling(const YarnConfig& yarn) {
  return {{"type", "yarn"},
          {"factor", yarn.factor},
          {"beta_fast", yarn.beta_fast},
          {"beta_slow", yarn.beta_slow},
          {"mscale", yarn.mscale},
          {"mscale_all_dim", yarn.mscale_all_dim},
          {"original_max_position_embeddings", yarn.original_seq_len}};
}

std::string TopkMethodName(TopkMethod method) {
  switch (method) {
    case TopkMethod::kGreedy: return "greedy";
    case TopkMethod::kGroupLimitedGreedy: return "group_limited_greedy";
    case TopkMethod::kNoAuxTc: return "noaux_tc";
  }
  return {};
}

json ConfigJson(const ModelConfig& c) {
  json out = {{"architectures", {c.architecture}},
              {"model_type", c.model_type},
              {"torch_dtype", c.dtype == DType::kF32 ? "float32" : "bfloat16"},
              {"vocab_size", c.vocab_size},
              {"hidden_size", c.dim},
              {"intermediate_size", c.inter_dim},
              {"moe_intermediate_size", c.moe_inter_dim},
              {"num_hidden_layers", c.n_layers},
              {"first_k_dense_replace", c.n_dense_layers},
              {"num_attention_heads", c.n_heads},
              {"num_key_value_heads", c.n_heads},
              {"n_routed_experts", c.n_routed_experts},
              {"n_shared_experts", c.n_shared_experts},
              {"num_experts_per_tok", c.n_activated_experts},
              {"n_group", c.n_expert_groups},
              {"topk_group", c.n_limited_groups},
              {"scoring_func", c.score_func == ScoreFunc::kSigmoid ? "sigmoid" : "softmax"},
              {"topk_method", TopkMethodName(c.topk_method)},
              {"norm_topk_prob", c.norm_topk_prob},
              {"routed_scaling_factor", c.route_scale},
              {"q_lora_rank", nullptr},
              {"kv_lora_rank", c.kv_lora_rank},
              {"qk_nope_head_dim", c.qk_nope_head_dim},
              {"qk_rope_head_dim", c.qk_rope_head_dim},
              {"v_head_dim", c.v_head_dim},
              {"rope_theta", c.rope_theta},
              {"rms_norm_eps", c.norm_eps},
              {"max_position_embeddings", c.max_seq_len},
              {"num_nextn_predict_layers", c.n_mtp_layers},
              {"tie_word_embeddings", false},
              {"hidden_act", "silu"}};
  if (c.q_lora_rank > 0) out["q_lora_rank"] = c.q_lora_rank;
  if (c.yarn) out["rope_scaling"] = RopeScaling(*c.yarn);
  if (!c.eos_ids.empty()) out["eos_token_id"] = c.eos_ids;
  if (c.bos_id >= 0) out["bos_token_id"] = c.bos_id;
  if (c.dtype == DType::kF8E4M3) {
    out["quantization_config"] = {{"quant_method", "fp8"},
                                  {"fmt", "e4m3"},
                                  {"activation_scheme", "dynamic"},
                                  {"weight_block_size", {c.scale_block, c.scale_block}}};
    if (!c.scale_fmt.empty()) out["quantization_config"]["scale_fmt"] = c.scale_fmt;
  }
  return out;
}

// Appends the numbers of one tensor.
class TensorWriter {
 public:
  explicit TensorWriter(uint64_t seed) : random_(seed) {}

  void Append(const ExpectedTensor& tensor, std::string* data) {
    int64_t count = 1;
    for (int64_t size : tensor.shape) count *= size;
    const DType dtype = tensor.dtypes.front();
    for (int64_t i = 0; i < count; ++i) AppendValue(Value(tensor), dtype, data);
  }

 private:
  // Norms around 1, a router bias around 0, matrices that keep the size of what they multiply.
  double Value(const ExpectedTensor& tensor) {
    std::normal_distribution<double> normal;
    if (!tensor.scaled_shape.empty()) {
      return std::exp2(std::uniform_int_distribution(-9, -8)(random_)) /
             std::sqrt(static_cast<double>(tensor.scaled_shape[1]));
    }
    if (!tensor.scale_name.empty()) return 256 * normal(random_);  // undone by the scale
    if (tensor.name.find("norm") != std::string::npos) return 1 + 0.1 * normal(random_);
    if (tensor.shape.size() == 1) return 0.1 * normal(random_);
    if (tensor.name.find("embed_tokens") != std::string::npos) return normal(random_);
    return normal(random_) / std::sqrt(static_cast<double>(tensor.shape[1]));
  }

  void AppendValue(double value, DType dtype, std::string* data) {
    const auto number = static_cast<float>(value);
    const uint32_t bits = dtype == DType::kF32    ? std::bit_cast<uint32_t>(number)
                          : dtype == DType::kBF16 ? FloatToBf16(number)
                                                  : FloatToF8E4M3(number);
    for (int i = 0; i < DTypeSize(dtype); ++i) data->push_back(static_cast<char>(bits >> (8 * i)));
  }

  std::mt19937_64 random_;
};

}  // namespace

ModelConfig TinyConfig(DType dtype) {
  ModelConfig config;
  config.architecture = "DeepseekV3ForCausalLM";
  config.model_type = "deepseek_v3";
  config.dtype = dtype;
  config.vocab_size = 261;
  config.dim = 72;
  config.inter_dim = 130;
  config.moe_inter_dim = 37;
  config.n_layers = 3;
  config.n_dense_layers = 1;
  config.n_heads = 4;
  config.n_routed_experts = 8;
  config.n_shared_experts = 1;
  config.n_activated_experts = 3;
  config.n_expert_groups = 4;
  config.n_limited_groups = 2;
  config.score_func = ScoreFunc::kSigmoid;
  config.topk_method = TopkMethod::kNoAuxTc;
  config.norm_topk_prob = true;
  config.route_scale = 2.5f;
  config.q_lora_rank = 40;
  config.kv_lora_rank = 33;
  config.qk_nope_head_dim = 20;
  config.qk_rope_head_dim = 10;
  config.v_head_dim = 18;
  config.yarn = YarnConfig{};
  config.max_seq_len = 4096;
  config.eos_ids = {260};
  config.bos_id = 259;
  return config;
}

void WriteTinyCheckpoint(const std::string& dir, const ModelConfig& config, uint64_t seed) {
  const std::vector<ExpectedTensor> expected = ExpectedTensors(config);
  std::vector<TensorInfo> tensors;
  for (const ExpectedTensor& tensor : expected) {
    tensors.push_back({.name = tensor.name,
                       .dtype_name = std::string(DTypeName(tensor.dtypes.front())),
                       .shape = tensor.shape});
  }
  const std::string prefix = LayOutSafetensors("pt", &tensors);
  WriteFileAtomically(dir + "/config.json", ConfigJson(config).dump(2));
  AtomicFile file(dir + "/model.safetensors");
  file.WriteAt(0, std::as_bytes(std::span(prefix)));
  TensorWriter writer(seed);
  for (size_t i = 0; i < tensors.size(); ++i) {
    std::string data;
    writer.Append(expected[i], &data);
    file.WriteAt(prefix.size() + tensors[i].begin, std::as_bytes(std::span(data)));
  }
  file.Commit();
}

}  // namespace hadal::testing
