#include "server/frontend/served_model.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "common/file.h"

namespace hadal {
namespace {

std::string NameOf(const std::string& model_dir) {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(model_dir, error);
  return error ? model_dir : path.filename().string();
}

// Null when the model has none.
StatusOr<nlohmann::json> ReadGenerationConfig(const std::string& model_dir) {
  StatusOr<nlohmann::json> json =
      ReadJsonFile(model_dir + "/generation_config.json", kMaxConfigBytes);
  if (!json.ok() && json.status().code() == StatusCode::kNotFound) return nlohmann::json();
  return json;
}

StatusOr<v1::SamplingOptions> ParseDefaults(const nlohmann::json& json) {
  v1::SamplingOptions defaults;
  if (!json.is_object()) return defaults;
  const auto number = [&](const char* key, double low, double high, auto set) -> Status {
    const auto it = json.find(key);
    if (it == json.end() || it->is_null()) return OkStatus();
    if (!it->is_number() || it->get<double>() < low || it->get<double>() > high) {
      return InvalidArgument("generation_config.json: {} is {}, not a number from {} to {}", key,
                             it->dump(), low, high);
    }
    set(it->get<double>());
    return OkStatus();
  };
  HADAL_RETURN_IF_ERROR(number("temperature", 0, 100, [&](double x) {
    defaults.set_temperature(static_cast<float>(x));
  }));
  HADAL_RETURN_IF_ERROR(number("top_p", 1e-9, 1, [&](double x) {
    defaults.set_top_p(static_cast<float>(x));
  }));
  HADAL_RETURN_IF_ERROR(number("top_k", 0, 1e9, [&](double x) {
    defaults.set_top_k(static_cast<int32_t>(x));
  }));
  if (json.value("do_sample", nlohmann::json(true)) == false) defaults.set_temperature(0);
  return defaults;
}

// The workers compute with the directory's config.json: a --config may name the same sizes in other
// words, and a shorter context.
Status CheckSameSizes(const ModelConfig& config, const ModelConfig& workers,
                      const std::string& config_file) {
  const std::pair<const char*, int64_t ModelConfig::*> sizes[] = {
      {"vocab_size", &ModelConfig::vocab_size},
      {"hidden_size (dim)", &ModelConfig::dim},
      {"intermediate_size (inter_dim)", &ModelConfig::inter_dim},
      {"moe_intermediate_size (moe_inter_dim)", &ModelConfig::moe_inter_dim},
      {"num_hidden_layers (n_layers)", &ModelConfig::n_layers},
      {"first_k_dense_replace (n_dense_layers)", &ModelConfig::n_dense_layers},
      {"num_attention_heads (n_heads)", &ModelConfig::n_heads},
      {"n_routed_experts", &ModelConfig::n_routed_experts},
      {"n_shared_experts", &ModelConfig::n_shared_experts},
      {"num_experts_per_tok (n_activated_experts)", &ModelConfig::n_activated_experts},
      {"q_lora_rank", &ModelConfig::q_lora_rank},
      {"kv_lora_rank", &ModelConfig::kv_lora_rank},
      {"qk_nope_head_dim", &ModelConfig::qk_nope_head_dim},
      {"qk_rope_head_dim", &ModelConfig::qk_rope_head_dim},
      {"v_head_dim", &ModelConfig::v_head_dim}};
  for (const auto& [name, size] : sizes) {
    if (config.*size == workers.*size) continue;
    return InvalidArgument("--config {}: {} is {}, but {} in the model's config.json, which the workers "
                           "load; it must describe the same model",
                           config_file, name, config.*size, workers.*size);
  }
  if (config.max_seq_len <= workers.max_seq_len) return OkStatus();
  return InvalidArgument("--config {}: a context of {} tokens, but {} in the model's config.json, which "
                         "the workers load",
                         config_file, config.max_seq_len, workers.max_seq_len);
}

StatusOr<ModelConfig> ReadConfig(const ServedModelOptions& options,
                                 const nlohmann::json& generation) {
  if (options.config_file.empty()) return LoadModelConfig(options.model_dir);
  HADAL_ASSIGN_OR_RETURN(const nlohmann::json json,
                         ReadJsonFile(options.config_file, kMaxConfigBytes));
  HADAL_ASSIGN_OR_RETURN(ModelConfig config,
                         ParseModelConfig(json, generation.is_object() ? &generation : nullptr));
  HADAL_ASSIGN_OR_RETURN(const ModelConfig workers, LoadModelConfig(options.model_dir));
  HADAL_RETURN_IF_ERROR(CheckSameSizes(config, workers, options.config_file));
  return config;
}

Status ReadTokenizer(const ServedModelOptions& options, ServedModel* model) {
  StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(options.model_dir);
  if (!tokenizer.ok() && tokenizer.status().code() == StatusCode::kNotFound) {
    model->no_chat_template =
        FailedPrecondition("{} has no tokenizer.json: it serves token ids only", model->name);
    if (options.chat_template.empty()) return OkStatus();
    return FailedPrecondition("--chat-template {}: {} has no tokenizer.json",
                              options.chat_template, options.model_dir);
  }
  if (!tokenizer.ok()) return tokenizer.status();
  model->tokenizer = std::move(tokenizer).value();
  if (!options.chat_template.empty()) {
    HADAL_ASSIGN_OR_RETURN(model->chat_template,
                           MakeChatTemplate(options.chat_template, *model->tokenizer));
    return OkStatus();
  }
  StatusOr<std::unique_ptr<ChatTemplate>> detected = DetectChatTemplate(*model->tokenizer);
  if (detected.ok()) {
    model->chat_template = std::move(detected).value();
  } else {
    model->no_chat_template = detected.status();
  }
  return OkStatus();
}

}  // namespace

StatusOr<std::unique_ptr<ServedModel>> LoadServedModel(const ServedModelOptions& options) {
  auto model = std::make_unique<ServedModel>();
  model->name = NameOf(options.model_dir);
  HADAL_ASSIGN_OR_RETURN(const nlohmann::json generation, ReadGenerationConfig(options.model_dir));
  HADAL_ASSIGN_OR_RETURN(model->config, ReadConfig(options, generation));
  HADAL_ASSIGN_OR_RETURN(model->defaults, ParseDefaults(generation));
  HADAL_RETURN_IF_ERROR(ReadTokenizer(options, model.get()));

  const auto longest = static_cast<int32_t>(
      std::min<int64_t>(model->config.max_seq_len, std::numeric_limits<int32_t>::max()));
  if (options.context_length > longest) {
    return InvalidArgument("--context-length {}: the model's is {}", options.context_length, longest);
  }
  model->context_length = options.context_length > 0 ? options.context_length : longest;
  model->vocab_limit = static_cast<int32_t>(model->config.vocab_size);
  if (model->tokenizer != nullptr) {
    if (model->tokenizer->id_limit() > model->vocab_limit) {
      return InvalidArgument("tokenizer.json has ids up to {}, but config.json's vocab_size is {}",
                             model->tokenizer->id_limit() - 1, model->vocab_limit);
    }
    model->vocab_limit = model->tokenizer->id_limit();
  }
  HADAL_ASSIGN_OR_RETURN(model->fingerprint, ModelFingerprint(options.model_dir));
  return model;
}

}  // namespace hadal
