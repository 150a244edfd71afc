// A config.json from outside as the checkpoint tools read it and write it again.
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "common/check.h"
#include "common/file.h"
#include "common/model_config.h"
#include "tools/config_text.h"

namespace hadal {
namespace {
using nlohmann::json;

bool IsBlock(const std::string& text, BlockShape block) {
  const auto found = QuantizationBlock(text);
  return found.ok() && found->rows == block.rows && found->columns == block.columns;
}

json Parsed(const std::string& text) {
  const auto parsed = ParseJson(text, "written");
  HADAL_CHECK(parsed.ok(), "{}", parsed.status().message());
  return *parsed;
}

// Casts change what says how weights are stored and nothing else.
void CheckCasts(const std::string& text, json config, BlockShape block) {
  const std::string bf16 = ConfigTextForBf16(text);
  const std::string fp8 = ConfigTextForF8E4M3(text, block, block.rows % 2 == 0);
  HADAL_CHECK(IsBlock(bf16, BlockShape{}) && IsBlock(fp8, block));
  HADAL_CHECK(ConfigTextForBf16(fp8) == bf16);
  json without = Parsed(fp8);
  HADAL_CHECK(without.erase("quantization_config") == 1);
  config.erase("quantization_config");
  HADAL_CHECK(without == config);
  json cast = Parsed(bf16);
  const char* dtype =
      config.contains("dtype") && !config.contains("torch_dtype") ? "dtype" : "torch_dtype";
  HADAL_CHECK(cast.at(dtype) == "bfloat16");
  cast.erase(dtype);
  config.erase(dtype);
  HADAL_CHECK(cast == config);
}

// A conversion writes the same model under the reference's names, but for MTP layers.
void CheckConversion(ModelConfig config) {
  const auto again = ParseModelConfig(Parsed(ReferenceConfigText(config)), nullptr);
  HADAL_CHECK(again.ok(), "{}", again.status().message());
  config.n_mtp_layers = 0;
  HADAL_CHECK(*again == config, "{}", ReferenceConfigText(config));
}

}  // namespace
}  // namespace hadal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto parsed = hadal::ParseJson(text, "config.json");
  if (!parsed.ok()) return 0;
  const auto block = hadal::QuantizationBlock(text);
  if (block.ok()) {
    HADAL_CHECK(block->rows >= 1 && block->rows <= 4096);
    HADAL_CHECK(block->columns >= 1 && block->columns <= 4096);
  }
  if (parsed->is_object()) {
    hadal::CheckCasts(text, *parsed, block.ok() ? *block : hadal::BlockShape{1, 4096});
  }
  for (const nlohmann::json* generation : {static_cast<const nlohmann::json*>(nullptr), &*parsed}) {
    const auto config = hadal::ParseModelConfig(*parsed, generation);
    if (config.ok()) hadal::CheckConversion(*config);
  }
  return 0;
}
