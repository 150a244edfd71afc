#include "common/model_config.h"

#include <array>
#include <nlohmann/json.hpp>

#include "common/config_reader.h"
#include "common/file.h"
#include "common/model_config_schemes.h"

namespace hadal {
namespace {
using nlohmann::json;

// Bounds what a hostile file can make the tensor inventory list; the largest released model of the
// family has 61 x 384.
constexpr int64_t kMaxExpertsInAllLayers = 1 << 18;

std::string_view Name(const ConfigNames& names, int64_t ModelConfig::*member) {
  for (const ShapeField& field : ShapeFields()) {
    if (field.member == member) return names.reference ? field.reference : field.hugging_face;
  }
  HADAL_CHECK(false, "not a shape field");
  return {};
}

// Every expert a token may choose must exist, whatever groups are masked.
void CheckRouting(const ModelConfig& config, const ConfigNames& names, ConfigReader* reader) {
  const auto name = [&](int64_t ModelConfig::*member) { return Name(names, member); };
  const auto experts = name(&ModelConfig::n_routed_experts);
  const auto active = name(&ModelConfig::n_activated_experts);
  const auto groups = name(&ModelConfig::n_expert_groups);
  const auto limited = name(&ModelConfig::n_limited_groups);
  if (reader->Good({experts, active}) && config.n_activated_experts > config.n_routed_experts) {
    reader->Problem(active, fmt::format("{} is more than the {} routed experts",
                                        config.n_activated_experts, config.n_routed_experts));
  }
  if (reader->Good({experts, groups}) && config.n_routed_experts % config.n_expert_groups != 0) {
    reader->Problem(groups, fmt::format("{} groups do not divide {} routed experts",
                                        config.n_expert_groups, config.n_routed_experts));
  }
  if (reader->Good({groups, limited}) && config.n_limited_groups > config.n_expert_groups) {
    reader->Problem(limited, fmt::format("{} is more than the {} groups", config.n_limited_groups,
                                         config.n_expert_groups));
  }
  if (!reader->Good({experts, active, groups, limited}) ||
      config.topk_method == TopkMethod::kGreedy || config.n_expert_groups == 1) {
    return;
  }
  const int64_t group_size = config.n_routed_experts / config.n_expert_groups;
  if (config.n_activated_experts > group_size * config.n_limited_groups) {
    reader->Problem(
        active,
        fmt::format("{} is more than the {} experts of {} groups", config.n_activated_experts,
                    group_size * config.n_limited_groups, config.n_limited_groups));
  }
  if (config.topk_method == TopkMethod::kNoAuxTc && group_size < 2) {
    reader->Problem(groups, "noaux_tc ranks groups by their two best experts, but a group has one");
  }
}

void CheckShape(const ModelConfig& config, const ConfigNames& names, ConfigReader* reader) {
  const auto name = [&](int64_t ModelConfig::*member) { return Name(names, member); };
  const auto layers = name(&ModelConfig::n_layers);
  const auto dense = name(&ModelConfig::n_dense_layers);
  const auto experts = name(&ModelConfig::n_routed_experts);
  const auto rope = name(&ModelConfig::qk_rope_head_dim);
  if (reader->Good({layers, dense}) && config.n_dense_layers > config.n_layers) {
    reader->Problem(dense, fmt::format("{} is more than the {} layers", config.n_dense_layers,
                                       config.n_layers));
  }
  if (reader->Good({rope}) && config.qk_rope_head_dim % 2 != 0) {
    reader->Problem(rope,
                    fmt::format("{} is odd; rotation works on pairs", config.qk_rope_head_dim));
  }
  if (reader->Good({layers, experts}) &&
      config.n_layers * config.n_routed_experts > kMaxExpertsInAllLayers) {
    reader->Problem(experts,
                    fmt::format("{} layers of {} experts are more than {} experts in all",
                                config.n_layers, config.n_routed_experts, kMaxExpertsInAllLayers));
  }
  CheckRouting(config, names, reader);
}

Status Refusal(const std::vector<std::string>& problems) {
  std::string text =
      fmt::format("the model's configuration cannot be used ({} problem{}):", problems.size(),
                  problems.size() == 1 ? "" : "s");
  for (const std::string& problem : problems) text += "\n  " + problem;
  return {StatusCode::kInvalidArgument, std::move(text)};
}

}  // namespace

StatusOr<ModelConfig> ParseModelConfig(const json& config, const json* generation_config) {
  std::vector<std::string> problems;
  ModelConfig parsed;
  ConfigReader reader(config, "", &problems);
  const bool reference = reader.Has("dim");
  const bool hugging_face =
      reader.Has("hidden_size") || reader.Has("architectures") || reader.Has("model_type");
  if (config.is_object() && reference && reader.Has("hidden_size")) {
    problems.push_back(
        "dim and hidden_size: both naming schemes are mixed; use the names of one of them");
  } else if (config.is_object() && !reference && !hugging_face) {
    problems.push_back(
        "neither hidden_size (Hugging Face's names) nor dim (the reference's names) is set; "
        "give the config.json of a DeepSeek-V2 or V3 checkpoint");
  }
  if (!problems.empty()) return Refusal(problems);

  if (reference) {
    ParseReferenceScheme(&reader, config, &parsed);
  } else if (!ParseHuggingFaceScheme(&reader, &problems, &parsed)) {
    return Refusal(problems);  // another kind of model: its other fields mean nothing here
  }
  CheckShape(parsed, {.reference = reference}, &reader);
  if (generation_config != nullptr) {
    ConfigReader generation(*generation_config, "generation_config.json: ", &problems);
    if (generation.Has("eos_token_id")) {
      parsed.eos_ids = generation.Ids("eos_token_id", parsed.vocab_size);
    }
    if (parsed.bos_id < 0) {
      parsed.bos_id =
          static_cast<int32_t>(generation.Int("bos_token_id", 0, parsed.vocab_size - 1, -1));
    }
  }
  if (!problems.empty()) return Refusal(problems);
  return parsed;
}

StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  HADAL_ASSIGN_OR_RETURN(const json config,
                         ReadJsonFile(model_dir + "/config.json", kMaxConfigBytes));
  auto generation = ReadJsonFile(model_dir + "/generation_config.json", kMaxConfigBytes);
  if (!generation.ok() && generation.status().code() != StatusCode::kNotFound) {
    return generation.status();
  }
  auto parsed = ParseModelConfig(config, generation.ok() ? &*generation : nullptr);
  if (parsed.ok()) return parsed;
  return Status(parsed.status().code(),
                fmt::format("{}/config.json: {}", model_dir, parsed.status().message()));
}

}  // namespace hadal
