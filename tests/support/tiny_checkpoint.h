#pragma once

#include <cstdint>
#include <string>

#include "common/model_config.h"

namespace hadal::testing {

// A small model with every part of the family: query compression, dense and expert layers, a biased
// sigmoid router with groups, shared experts. Loads on 1, 2 and 4 ranks; nothing else divides a tile.
ModelConfig TinyConfig(DType dtype);

// Writes `config` as config.json (Hugging Face names) and random weights as model.safetensors into an
// existing directory. The same seed gives the same bytes. Logits of such a model are of order one.
// Throws std::system_error when a file cannot be written.
void WriteTinyCheckpoint(const std::string& dir, const ModelConfig& config, uint64_t seed);

}  // namespace hadal::testing
