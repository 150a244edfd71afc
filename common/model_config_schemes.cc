#include "common/model_config_schemes.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>

#include "common/utf8.h"

namespace hadal {
namespace {
using nlohmann::json;

constexpr int64_t kMaxTokens = 1 << 24;  // of the vocabulary, of a context
constexpr int64_t kMaxWidth = 1 << 18;
constexpr int64_t kMaxHeadDim = 1 << 12;
constexpr const char* kV2 = "DeepseekV2ForCausalLM";
constexpr const char* kV3 = "DeepseekV3ForCausalLM";

using C = ModelConfig;
constexpr std::array kShapeFields = {
    ShapeField{&C::vocab_size, "vocab_size", "vocab_size", 1, kMaxTokens},
    ShapeField{&C::dim, "dim", "hidden_size", 1, kMaxWidth},
    ShapeField{&C::inter_dim, "inter_dim", "intermediate_size", 1, kMaxWidth},
    ShapeField{&C::moe_inter_dim, "moe_inter_dim", "moe_intermediate_size", 1, kMaxWidth},
    ShapeField{&C::n_layers, "n_layers", "num_hidden_layers", 1, 1024},
    ShapeField{&C::n_dense_layers, "n_dense_layers", "first_k_dense_replace", 0, 1024},
    ShapeField{&C::n_heads, "n_heads", "num_attention_heads", 1, 4096},
    ShapeField{&C::n_routed_experts, "n_routed_experts", "n_routed_experts", 1, 8192},
    ShapeField{&C::n_shared_experts, "n_shared_experts", "n_shared_experts", 0, 64, 0},
    ShapeField{&C::n_activated_experts, "n_activated_experts", "num_experts_per_tok", 1, 256},
    ShapeField{&C::n_expert_groups, "n_expert_groups", "n_group", 1, 1024, 1},
    ShapeField{&C::n_limited_groups, "n_limited_groups", "topk_group", 1, 1024, 1},
    ShapeField{&C::q_lora_rank, "q_lora_rank", "q_lora_rank", 0, kMaxWidth, 0},
    ShapeField{&C::kv_lora_rank, "kv_lora_rank", "kv_lora_rank", 1, kMaxWidth},
    ShapeField{&C::qk_nope_head_dim, "qk_nope_head_dim", "qk_nope_head_dim", 1, kMaxHeadDim},
    ShapeField{&C::qk_rope_head_dim, "qk_rope_head_dim", "qk_rope_head_dim", 2, kMaxHeadDim},
    ShapeField{&C::v_head_dim, "v_head_dim", "v_head_dim", 1, kMaxHeadDim},
    ShapeField{&C::max_seq_len, "max_seq_len", "max_position_embeddings", 1, kMaxTokens},
};

const std::map<std::string, ScoreFunc> kScoreFuncs = {{"softmax", ScoreFunc::kSoftmax},
                                                      {"sigmoid", ScoreFunc::kSigmoid}};
const std::map<std::string, TopkMethod> kTopkMethods = {
    {"greedy", TopkMethod::kGreedy},
    {"group_limited_greedy", TopkMethod::kGroupLimitedGreedy},
    {"noaux_tc", TopkMethod::kNoAuxTc}};
const std::map<std::string, std::string> kScaleFormats = {{"ue8m0", "ue8m0"}};

float RouteScale(ConfigReader* reader, const char* key, std::optional<double> absent) {
  return reader->Float(key, 1e-6, 1e6, absent);
}
float NormEps(ConfigReader* reader, const char* key, std::optional<double> absent) {
  return reader->Float(key, 1e-12, 0.1, absent);
}
float RopeTheta(ConfigReader* reader) { return reader->Float("rope_theta", 1.001, 1e12, 1e4); }

// Fields that are spelled alike in rope_scaling and in the reference's config.
void ReadBetas(ConfigReader* reader, YarnConfig* yarn) {
  yarn->beta_fast = reader->Float("beta_fast", 1e-3, 1e6, 32);
  yarn->beta_slow = reader->Float("beta_slow", 1e-3, 1e6, 1);
  if (reader->Good({"beta_fast", "beta_slow"}) && yarn->beta_fast < yarn->beta_slow) {
    reader->Problem("beta_fast", "must not be less than beta_slow");
  }
}

void RefuseUnknownKeys(ConfigReader* reader, const json& config) {
  static const std::set<std::string> kOthers = {
      "architecture", "beta_fast",       "beta_slow",      "bos_id",           "dtype",
      "eos_ids",      "latent_norm_eps", "max_batch_size", "model_type",       "mscale",
      "n_mtp_layers", "norm_eps",        "norm_topk_prob", "original_seq_len", "rope_factor",
      "rope_theta",   "route_scale",     "scale_block",    "scale_fmt",        "score_func",
      "topk_method"};
  for (auto it = config.begin(); it != config.end(); ++it) {
    const bool known =
        kOthers.count(it.key()) != 0 ||
        std::any_of(kShapeFields.begin(), kShapeFields.end(),
                    [&](const ShapeField& field) { return it.key() == field.reference; });
    if (!known) {
      reader->Problem(DisplayText(it.key(), 80), "is no field of this kind of model; remove it");
    }
  }
}

// An explicit name must be one of the family's; without one the gate decides, as only V3 has a
// bias.
void ReadReferenceArchitecture(ConfigReader* reader, ModelConfig* out) {
  const bool v3 = out->has_gate_bias();
  out->architecture =
      reader->OneOf<std::string>("architecture", {{kV2, kV2}, {kV3, kV3}}, v3 ? kV3 : kV2);
  out->model_type = reader->OneOf<std::string>(
      "model_type",
      {{"deepseek_v2", "deepseek_v2"}, {"deepseek_v3", "deepseek_v3"}, {"kimi_k2", "kimi_k2"}},
      out->architecture == kV3 ? "deepseek_v3" : "deepseek_v2");
}

// False when the file describes another kind of model.
bool ReadHuggingFaceArchitecture(ConfigReader* reader, std::vector<std::string>* problems,
                                 ModelConfig* out) {
  static const std::map<std::string, std::string> kArchitectureOf = {
      {"deepseek_v2", kV2}, {"deepseek_v3", kV3}, {"kimi_k2", kV3}};
  static constexpr std::string_view kSupported =
      "supported: DeepseekV2ForCausalLM and DeepseekV3ForCausalLM with model_type deepseek_v2, "
      "deepseek_v3 or kimi_k2";
  const size_t before = problems->size();
  if (const json* value = reader->Find("architectures")) {
    const bool one = value->is_array() && value->size() == 1 && value->front().is_string();
    const std::string name = one ? value->front().get<std::string>() : "";
    if (name == kV2 || name == kV3) {
      out->architecture = name;
    } else {
      reader->Problem("architectures",
                      fmt::format("{} is not supported; {}", DisplayJson(*value), kSupported));
    }
  }
  if (const json* value = reader->Find("model_type")) {
    const auto found = value->is_string() ? kArchitectureOf.find(value->get<std::string>())
                                          : kArchitectureOf.end();
    if (found == kArchitectureOf.end()) {
      reader->Problem("model_type",
                      fmt::format("{} is not supported; {}", DisplayJson(*value), kSupported));
    } else {
      out->model_type = found->first;
      if (out->architecture.empty()) out->architecture = found->second;
    }
  } else {
    out->model_type = out->architecture == kV2 ? "deepseek_v2" : "deepseek_v3";
  }
  if (out->architecture.empty() && problems->size() == before) {
    problems->push_back(fmt::format("architectures and model_type: both missing; {}", kSupported));
  }
  return problems->size() == before;
}

// Pairs of weights are multiplied together, under one scale.
int64_t ReadScaleBlock(ConfigReader* reader, const char* key, std::optional<int64_t> absent) {
  const int64_t side = reader->Int(key, 2, 4096, absent);
  if (side % 2 != 0) {
    reader->Problem(key, fmt::format("{} is odd; only even blocks are supported, hadal-fp8-cast-bf16 "
                                     "casts the checkpoint to bfloat16", side));
  }
  return side;
}

void ReadQuantization(ConfigReader* reader, std::vector<std::string>* problems, ModelConfig* out) {
  const char* key = reader->Has("dtype") ? "dtype" : "torch_dtype";
  const bool quantized = reader->Has("quantization_config");
  out->dtype = reader->OneOf<DType>(key, {{"bfloat16", DType::kBF16}, {"float32", DType::kF32}},
                                    quantized ? std::optional(DType::kBF16) : std::nullopt);
  if (!quantized) return;
  ConfigReader quant(*reader->Find("quantization_config"), "quantization_config.", problems);
  if (!reader->Find("quantization_config")->is_object()) return;
  out->dtype = quant.OneOf<DType>("quant_method", {{"fp8", DType::kF8E4M3}});
  quant.Require("fmt", "e4m3", "convert the checkpoint to e4m3 or bfloat16");
  quant.Require("activation_scheme", "dynamic", "convert the checkpoint to bfloat16");
  if (quant.Has("scale_fmt")) {
    out->scale_fmt = quant.OneOf<std::string>("scale_fmt", kScaleFormats);
  }
  const json* block = quant.Find("weight_block_size");
  const bool square =
      block != nullptr && block->is_array() && block->size() == 2 && block->at(0) == block->at(1);
  if (!square) {
    quant.Problem("weight_block_size", "must be a square block, as [128, 128]");
    return;
  }
  const json side = {{"weight_block_size", block->at(0)}};
  ConfigReader side_reader(side, "quantization_config.", problems);
  out->scale_block = ReadScaleBlock(&side_reader, "weight_block_size", std::nullopt);
}

// `rope` is rope_scaling or rope_parameters. The rotated vectors themselves are never scaled, so
// mscale and mscale_all_dim must agree.
void ReadYarn(ConfigReader* rope, ModelConfig* out) {
  YarnConfig yarn;
  yarn.factor = rope->Float("factor", 1, 1e4);
  ReadBetas(rope, &yarn);
  yarn.mscale = rope->Float("mscale", 0, 100);
  yarn.mscale_all_dim = rope->Float("mscale_all_dim", 0, 100);
  yarn.original_seq_len = rope->Int("original_max_position_embeddings", 1, kMaxTokens);
  if (rope->Good({"mscale", "mscale_all_dim"}) && yarn.mscale != yarn.mscale_all_dim) {
    rope->Problem("mscale", fmt::format("{} differs from mscale_all_dim {}, which is not supported",
                                        yarn.mscale, yarn.mscale_all_dim));
  }
  rope->Require("truncate", true, "remove it");
  rope->Require("attention_factor", 1, "remove it");
  if (yarn.factor > 1) out->yarn = yarn;  // at 1 it changes nothing
}

void ReadRope(ConfigReader* reader, std::vector<std::string>* problems, ModelConfig* out) {
  reader->Require("rope_interleave", true, "store rotary pairs interleaved");
  if (reader->Has("rope_theta")) out->rope_theta = RopeTheta(reader);
  bool has_theta = reader->Has("rope_theta");
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const json* value = reader->Find(key);
    if (value == nullptr) continue;
    ConfigReader rope(*value, std::string(key) + ".", problems);
    if (!value->is_object()) continue;
    if (!has_theta && rope.Has("rope_theta")) {
      out->rope_theta = RopeTheta(&rope);
      has_theta = true;
    }
    const char* type_key = rope.Has("rope_type") ? "rope_type" : "type";
    const bool yarn = rope.OneOf<bool>(
        type_key, {{"yarn", true}, {"default", false}},
        std::string_view(key) == "rope_parameters" ? std::optional(false) : std::nullopt);
    if (yarn && !out->yarn) ReadYarn(&rope, out);
  }
  if (!has_theta) reader->Problem("rope_theta", "missing; set it to the base of the rotary angles");
}

void RefuseUnsupported(ConfigReader* reader, const ModelConfig& config) {
  reader->Require("attention_bias", false, "attention with biases is another architecture");
  reader->Require("hidden_act", "silu", "other activations are another architecture");
  reader->Require("moe_layer_freq", 1, "all layers after the dense ones must have experts");
  reader->Require("tie_word_embeddings", false, "store lm_head.weight on its own");
  if (reader->Good({"num_attention_heads"})) {
    reader->Require("num_key_value_heads", config.n_heads,
                    "latent attention has as many key heads as query heads");
  }
  if (reader->Good({"qk_nope_head_dim", "qk_rope_head_dim"})) {
    reader->Require("qk_head_dim", config.qk_head_dim(),
                    "it is qk_nope_head_dim + qk_rope_head_dim");
  }
  for (const char* key : {"index_n_heads", "index_head_dim", "index_topk"}) {
    if (reader->Has(key)) reader->Problem(key, "sparse attention with an indexer is not supported");
  }
  for (const char* key : {"text_config", "sliding_window", "compression_config"}) {
    if (reader->Has(key)) reader->Problem(key, "is not supported; only plain text models are");
  }
}

}  // namespace

std::span<const ShapeField> ShapeFields() { return kShapeFields; }

void ParseReferenceScheme(ConfigReader* reader, const json& config, ModelConfig* out) {
  RefuseUnknownKeys(reader, config);
  for (const ShapeField& field : kShapeFields) {
    out->*field.member = reader->Int(field.reference, field.low, field.high, out->*field.member);
  }
  reader->Int("max_batch_size", 1, 1 << 20, 8);
  out->n_mtp_layers = reader->Int("n_mtp_layers", 0, 64, 0);
  out->dtype = reader->OneOf<DType>(
      "dtype", {{"bf16", DType::kBF16}, {"fp8", DType::kF8E4M3}, {"fp32", DType::kF32}},
      DType::kBF16);
  out->scale_block = ReadScaleBlock(reader, "scale_block", 128);
  if (reader->Has("scale_fmt")) {
    out->scale_fmt = reader->OneOf<std::string>("scale_fmt", kScaleFormats);
  }
  out->score_func = reader->OneOf("score_func", kScoreFuncs, std::optional(ScoreFunc::kSoftmax));
  const bool sigmoid = out->score_func == ScoreFunc::kSigmoid;
  const TopkMethod by_score = sigmoid                    ? TopkMethod::kNoAuxTc
                              : out->n_expert_groups > 1 ? TopkMethod::kGroupLimitedGreedy
                                                         : TopkMethod::kGreedy;
  out->topk_method = reader->OneOf("topk_method", kTopkMethods, std::optional(by_score));
  out->norm_topk_prob = reader->Bool("norm_topk_prob", sigmoid);
  out->route_scale = RouteScale(reader, "route_scale", 1);
  out->norm_eps = NormEps(reader, "norm_eps", 1e-6);
  out->latent_norm_eps = NormEps(reader, "latent_norm_eps", 1e-6);
  out->rope_theta = RopeTheta(reader);
  YarnConfig yarn;
  yarn.factor = reader->Float("rope_factor", 1, 1e4, 40);
  ReadBetas(reader, &yarn);
  yarn.mscale = yarn.mscale_all_dim = reader->Float("mscale", 0, 100, 1);
  yarn.original_seq_len = reader->Int("original_seq_len", 1, kMaxTokens, 4096);
  if (yarn.factor > 1) out->yarn = yarn;
  ReadReferenceArchitecture(reader, out);
  out->bos_id = static_cast<int32_t>(reader->Int("bos_id", 0, out->vocab_size - 1, -1));
  out->eos_ids = reader->Ids("eos_ids", out->vocab_size);
}

bool ParseHuggingFaceScheme(ConfigReader* reader, std::vector<std::string>* problems,
                            ModelConfig* out) {
  if (!ReadHuggingFaceArchitecture(reader, problems, out)) return false;
  for (const ShapeField& field : kShapeFields) {
    const bool null = field.null_value >= 0 && reader->IsNull(field.hugging_face);
    out->*field.member =
        null ? field.null_value : reader->Int(field.hugging_face, field.low, field.high);
  }
  out->n_mtp_layers = reader->Int("num_nextn_predict_layers", 0, 64, 0);
  const bool v3 = out->architecture == kV3;
  out->score_func = reader->OneOf("scoring_func", kScoreFuncs,
                                  std::optional(v3 ? ScoreFunc::kSigmoid : ScoreFunc::kSoftmax));
  out->topk_method = reader->OneOf("topk_method", kTopkMethods,
                                   std::optional(v3 ? TopkMethod::kNoAuxTc : TopkMethod::kGreedy));
  out->norm_topk_prob = reader->Bool("norm_topk_prob", v3);
  out->route_scale = RouteScale(reader, "routed_scaling_factor", std::nullopt);
  out->norm_eps = NormEps(reader, "rms_norm_eps", 1e-6);
  ReadRope(reader, problems, out);
  ReadQuantization(reader, problems, out);
  RefuseUnsupported(reader, *out);
  out->bos_id = static_cast<int32_t>(reader->Int("bos_token_id", 0, out->vocab_size - 1, -1));
  out->eos_ids = reader->Ids("eos_token_id", out->vocab_size);
  return true;
}

}  // namespace hadal
