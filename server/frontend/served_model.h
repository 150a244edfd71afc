#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/model_config.h"
#include "common/status.h"
#include "hadal/v1/types.pb.h"
#include "server/text/chat_template.h"
#include "server/text/tokenizer.h"

namespace hadal {

struct ServedModelOptions {
  std::string model_dir;
  std::string config_file;    // in place of model_dir/config.json; empty: that
  std::string chat_template;  // name; empty: chosen from the model's files
  int32_t context_length = 0; // tokens of prompt and answer; 0: the model's
};

// What the server knows about its model: everything but the weights. Immutable; thread-safe.
struct ServedModel {
  std::string name;                             // of the directory
  ModelConfig config;
  std::unique_ptr<Tokenizer> tokenizer;         // null: the model has no tokenizer files
  std::unique_ptr<ChatTemplate> chat_template;  // null: no_chat_template says why
  Status no_chat_template;
  int32_t context_length = 0;
  int32_t vocab_limit = 0;                      // ids from here on have no token
  v1::SamplingOptions defaults;                 // of generation_config.json
  std::string fingerprint;
};

// Reads config, tokenizer and chat template of a model directory. A directory without tokenizer.json
// serves token ids; one whose template is unknown serves everything but chat, unless a template was
// asked for by name.
StatusOr<std::unique_ptr<ServedModel>> LoadServedModel(const ServedModelOptions& options);

}  // namespace hadal
