#pragma once

#include <string>

#include "common/model_config.h"
#include "common/status.h"
#include "tools/tensor_work.h"

namespace hadal {

// config.json in the names of DeepSeek's reference, every field written out, in the order of
// configs/*.json. ParseModelConfig gives the same config back.
std::string ReferenceConfigText(const ModelConfig& config);

// The block of quantization_config.weight_block_size in a Hugging Face config.json, 128 x 128
// without one. FAILED_PRECONDITION for another kind of quantisation.
StatusOr<BlockShape> QuantizationBlock(const std::string& config_text);

// The config.json of a checkpoint that was cast: without quantization_config and with bfloat16 as
// dtype; or with an FP8 quantization_config. Other fields and their order stay. REQUIRES: valid
// JSON, an object.
std::string ConfigTextForBf16(const std::string& config_text);
std::string ConfigTextForF8E4M3(const std::string& config_text, BlockShape block,
                                bool power_of_two);

}  // namespace hadal
