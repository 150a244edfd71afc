#include "tools/config_text.h"

#include <nlohmann/json.hpp>

#include "common/file.h"
#include "tests/common/hf_configs.h"
#include "tests/support/catch.h"

namespace hadal {
namespace {
using nlohmann::json;
using testing::HfConfig;

TEST_CASE("the reference's names give the same model back") {
  for (const char* name : {"v2_lite", "v2", "v3", "v3.1", "moonlight", "kimi_k2"}) {
    INFO(name);
    const json generation = {{"eos_token_id", {7, 9}}};
    auto config = ParseModelConfig(HfConfig(name), &generation);
    REQUIRE(config.ok());
    const json written = json::parse(ReferenceConfigText(*config));
    CHECK(written.contains("dim"));
    CHECK_FALSE(written.contains("hidden_size"));
    const auto again = ParseModelConfig(written, nullptr);
    INFO(again.status().message());
    REQUIRE(again.ok());
    config->n_mtp_layers = 0;  // left out of the files
    CHECK(*again == *config);
  }
}

TEST_CASE("configs/ is written as the tools write") {
  for (const char* name : {"16B", "236B", "671B", "v3.1"}) {
    INFO(name);
    const std::string path = fmt::format("configs/config_{}.json", name);
    json file = *ReadJsonFile(path, 1 << 20);
    const auto config = ParseModelConfig(file, nullptr);
    REQUIRE(config.ok());
    file["n_mtp_layers"] = 0;
    CHECK(json::parse(ReferenceConfigText(*config)) == file);
  }
}

TEST_CASE("quantization") {
  const auto block = [](const json& config) { return QuantizationBlock(config.dump()); };
  CHECK(block(HfConfig("v3"))->rows == 128);
  CHECK(block(json::object())->columns == 128);
  json config = HfConfig("v3");
  config["quantization_config"]["weight_block_size"] = {64, 32};
  CHECK(block(config)->rows == 64);
  CHECK(block(config)->columns == 32);
  for (const json& bad : {json({64}), json({0, 64}), json({-1, 64}), json({1.5, 2}), json("x"),
                          json({64, 64, 64}), json({1, 100000})}) {
    config["quantization_config"]["weight_block_size"] = bad;
    INFO(bad);
    CHECK_FALSE(block(config).ok());
  }
  config["quantization_config"] = {{"quant_method", 3}};
  CHECK_FALSE(block(config).ok());
}

TEST_CASE("the config of a cast checkpoint") {
  const std::string text = R"({"z": 1, "dtype": "float32", "quantization_config": {}, "a": [2]})";
  CHECK(nlohmann::ordered_json::parse(ConfigTextForBf16(text)).dump() ==
        R"({"z":1,"dtype":"bfloat16","a":[2]})");
  CHECK(json::parse(ConfigTextForBf16("{}")) == json({{"torch_dtype", "bfloat16"}}));
  json config = HfConfig("v2_lite");
  const auto cast =
      ParseModelConfig(json::parse(ConfigTextForF8E4M3(config.dump(), {}, true)), nullptr);
  REQUIRE(cast.ok());
  CHECK(cast->dtype == DType::kF8E4M3);
  CHECK(cast->scale_block == 128);
  CHECK(cast->scale_fmt == "ue8m0");
}

}  // namespace
}  // namespace hadal
