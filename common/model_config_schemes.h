#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "common/config_reader.h"
#include "common/model_config.h"

namespace hadal {

// One size of the model under both of its names. The bounds keep every product of two sizes, and
// the bytes of the whole model, far inside 64 bits.
struct ShapeField {
  int64_t ModelConfig::*member;
  const char* reference;
  const char* hugging_face;
  int64_t low;
  int64_t high;
  // Hugging Face writes null where there is none of this; the value that then applies. -1: never
  // null.
  int64_t null_value = -1;
};
std::span<const ShapeField> ShapeFields();

// The scheme whose names messages use.
struct ConfigNames {
  bool reference = false;
};

// DeepSeek's reference: unknown keys are refused, missing ones take the reference's defaults. Ours
// besides: architecture, model_type, topk_method, norm_topk_prob, norm_eps, latent_norm_eps,
// scale_block, n_mtp_layers, bos_id, eos_ids.
void ParseReferenceScheme(ConfigReader* reader, const nlohmann::json& config, ModelConfig* parsed);

// Hugging Face's config.json. False: not a model of this family; nothing but that is reported.
bool ParseHuggingFaceScheme(ConfigReader* reader, std::vector<std::string>* problems,
                            ModelConfig* parsed);

}  // namespace hadal
