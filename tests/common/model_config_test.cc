#include "common/model_config.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "common/file.h"
#include "tests/common/hf_configs.h"
#include "tests/common/parsed_config.h"
#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"
#include "tests/support/mentions.h"

namespace hadal {
namespace {
using nlohmann::json;
using testing::HfConfig;
using testing::Mentions;
using testing::Refusal;

StatusOr<ModelConfig> Parse(const json& config) { return ParseModelConfig(config, nullptr); }

ModelConfig Reference(const std::string& name) {
  auto file = ReadJsonFile("configs/config_" + name + ".json", 1 << 20);
  REQUIRE(file.ok());
  auto parsed = Parse(*file);
  INFO(parsed.status().message());
  REQUIRE(parsed.ok());
  return *parsed;
}

// The table of sizes of the four released models, in the order of the columns below.
struct Row {
  int64_t ModelConfig::*member;
  std::vector<int64_t> values;  // 16B, 236B, 671B, v3.1
};
const std::vector<std::string> kNames = {"16B", "236B", "671B", "v3.1"};
const std::vector<Row> kTable = {
    {&ModelConfig::vocab_size, {102400, 102400, 129280, 129280}},
    {&ModelConfig::dim, {2048, 5120, 7168, 7168}},
    {&ModelConfig::inter_dim, {10944, 12288, 18432, 18432}},
    {&ModelConfig::moe_inter_dim, {1408, 1536, 2048, 2048}},
    {&ModelConfig::n_layers, {27, 60, 61, 61}},
    {&ModelConfig::n_dense_layers, {1, 1, 3, 3}},
    {&ModelConfig::n_heads, {16, 128, 128, 128}},
    {&ModelConfig::n_routed_experts, {64, 160, 256, 256}},
    {&ModelConfig::n_shared_experts, {2, 2, 1, 1}},
    {&ModelConfig::n_activated_experts, {6, 6, 8, 8}},
    {&ModelConfig::n_expert_groups, {1, 8, 8, 8}},
    {&ModelConfig::n_limited_groups, {1, 3, 4, 4}},
    {&ModelConfig::q_lora_rank, {0, 1536, 1536, 1536}},
    {&ModelConfig::kv_lora_rank, {512, 512, 512, 512}},
    {&ModelConfig::qk_nope_head_dim, {128, 128, 128, 128}},
    {&ModelConfig::qk_rope_head_dim, {64, 64, 64, 64}},
    {&ModelConfig::v_head_dim, {128, 128, 128, 128}},
};

void CheckTable(const ModelConfig& config, size_t column) {
  for (const Row& row : kTable) CHECK(config.*row.member == row.values[column]);
  const bool v3 = column >= 2;
  CHECK(config.architecture == (v3 ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM"));
  CHECK(config.dtype == (v3 ? DType::kF8E4M3 : DType::kBF16));
  CHECK(config.scale_fmt == (column == 3 ? "ue8m0" : ""));
  CHECK(config.scale_block == 128);
  CHECK(config.score_func == (v3 ? ScoreFunc::kSigmoid : ScoreFunc::kSoftmax));
  CHECK(config.topk_method == std::vector{TopkMethod::kGreedy, TopkMethod::kGroupLimitedGreedy,
                                          TopkMethod::kNoAuxTc, TopkMethod::kNoAuxTc}[column]);
  CHECK(config.norm_topk_prob == v3);
  CHECK(config.has_gate_bias() == v3);
  CHECK(config.route_scale == std::vector{1.0f, 16.0f, 2.5f, 2.5f}[column]);
  CHECK(config.norm_eps == 1e-6f);
  CHECK(config.latent_norm_eps == 1e-6f);
  CHECK(config.rope_theta == 10000.0f);
  REQUIRE(config.yarn);
  CHECK(config.yarn->factor == 40);
  CHECK(config.yarn->beta_fast == 32);
  CHECK(config.yarn->beta_slow == 1);
  CHECK(config.yarn->original_seq_len == 4096);
  CHECK(config.bos_id == (v3 ? 0 : 100000));
  CHECK(config.eos_ids == std::vector<int32_t>{v3 ? 1 : 100001});
}

TEST_CASE("the released models' values in both naming schemes") {
  const std::vector<std::string> hugging_face = {"v2_lite", "v2", "v3", "v3.1"};
  for (size_t column = 0; column < kNames.size(); ++column) {
    INFO(kNames[column]);
    const ModelConfig reference = Reference(kNames[column]);
    CheckTable(reference, column);
    CHECK(reference.max_seq_len == 16384);
    const json file = *ReadJsonFile("configs/config_" + kNames[column] + ".json", 1 << 20);
    CHECK(file.at("max_batch_size") == 8);
    CHECK(file.at("dtype") == (column < 2 ? "bf16" : "fp8"));
    CHECK(file.at("mscale") == (column == 0 ? 0.707 : 1.0));
    CHECK(reference.yarn->mscale_all_dim == (column == 0 ? 0.707f : 1.0f));
    const auto parsed = Parse(HfConfig(hugging_face[column]));
    INFO(parsed.status().message());
    REQUIRE(parsed.ok());
    CheckTable(*parsed, column);
    CHECK(parsed->max_seq_len == 163840);
    CHECK(parsed->yarn->mscale_all_dim == (column < 2 ? 0.707f : 1.0f));
    CHECK(parsed->n_mtp_layers == (column < 2 ? 0 : 1));
  }
}

TEST_CASE("Moonlight and Kimi-K2 parse") {
  const auto moonlight = Parse(HfConfig("moonlight"));
  REQUIRE(moonlight.ok());
  CHECK_FALSE(moonlight->yarn);
  CHECK(moonlight->norm_eps == 1e-5f);
  CHECK(moonlight->latent_norm_eps == 1e-6f);
  CHECK(moonlight->rope_theta == 50000.0f);
  CHECK(moonlight->q_lora_rank == 0);
  CHECK(moonlight->topk_method == TopkMethod::kNoAuxTc);
  CHECK(moonlight->n_mtp_layers == 0);

  const json generation = {{"eos_token_id", 163586}};
  const auto kimi = ParseModelConfig(HfConfig("kimi_k2"), &generation);
  REQUIRE(kimi.ok());
  CHECK(kimi->model_type == "kimi_k2");
  CHECK(kimi->n_heads == 64);
  CHECK(kimi->yarn->beta_fast == 1);
  CHECK(kimi->eos_ids == std::vector<int32_t>{163586});  // not config.json's 163585
}

TEST_CASE("missing keys of the reference's scheme take its defaults") {
  const auto bare = Parse({{"dim", 2048}});
  REQUIRE(bare.ok());
  CHECK(bare->n_layers == 27);
  CHECK(bare->topk_method == TopkMethod::kGreedy);
  CHECK(bare->yarn->factor == 40);
  const auto grouped = Parse({{"dim", 2048}, {"n_expert_groups", 8}, {"n_limited_groups", 3}});
  REQUIRE(grouped.ok());
  CHECK(grouped->topk_method == TopkMethod::kGroupLimitedGreedy);
  // The gate's bias follows from the method, not from dim == 7168.
  const auto sigmoid = Parse({{"dim", 2048}, {"score_func", "sigmoid"}});
  REQUIRE(sigmoid.ok());
  CHECK(sigmoid->has_gate_bias());
  CHECK(sigmoid->norm_topk_prob);
  const auto softmax = Parse({{"dim", 7168}});
  REQUIRE(softmax.ok());
  CHECK_FALSE(softmax->has_gate_bias());
  CHECK(Mentions(Refusal({{"dim", 2048}, {"index_topk", 2048}}), "index_topk"));
}

TEST_CASE("rope_parameters of newer Hugging Face files") {
  json config = HfConfig("v3");
  const ModelConfig before = *Parse(config);
  json rope = config["rope_scaling"];
  rope["rope_theta"] = config["rope_theta"];
  rope["rope_type"] = rope["type"];
  rope.erase("type");
  config.erase("rope_theta");
  config.erase("rope_scaling");
  config["rope_parameters"] = rope;
  const auto after = Parse(config);
  REQUIRE(after.ok());
  CHECK(after->RopeFrequencies() == before.RopeFrequencies());
  CHECK(after->SoftmaxScale() == before.SoftmaxScale());

  config["rope_parameters"] = {{"rope_theta", 50000}, {"rope_type", "default"}};
  REQUIRE(Parse(config).ok());
  CHECK_FALSE(Parse(config)->yarn);
  CHECK(Parse(config)->rope_theta == 50000.0f);
}

TEST_CASE("weights' types") {
  json config = HfConfig("v2_lite");
  config["torch_dtype"] = "float32";
  CHECK(Parse(config)->dtype == DType::kF32);
  config.erase("torch_dtype");
  CHECK(Mentions(Refusal(config), "torch_dtype"));
  config["dtype"] = "bfloat16";
  CHECK(Parse(config)->dtype == DType::kBF16);
  config["dtype"] = "float16";
  CHECK(Mentions(Refusal(config), "\"float16\" is not supported; supported: bfloat16, float32"));

  config = HfConfig("v3");
  config["quantization_config"]["weight_block_size"] = {32, 32};
  CHECK(Parse(config)->scale_block == 32);
  for (const int odd : {1, 127}) {
    config["quantization_config"]["weight_block_size"] = {odd, odd};
    CHECK(Mentions(Refusal(config), "quantization_config.weight_block_size: "));
  }
  CHECK(Mentions(Refusal({{"dim", 2048}, {"scale_block", 65}}), "scale_block: 65 is odd"));
  config["quantization_config"]["weight_block_size"] = {32, 64};
  CHECK(Mentions(Refusal(config), "quantization_config.weight_block_size"));
  config["quantization_config"] = {{"quant_method", "awq"}};
  CHECK(Mentions(Refusal(config), "\"awq\""));
}

TEST_CASE("special token ids") {
  const json config = HfConfig("v2_lite");
  json generation = {{"eos_token_id", {7, 9}}};
  CHECK(ParseModelConfig(config, &generation)->eos_ids == std::vector<int32_t>{7, 9});
  generation = {{"temperature", 0.3}};
  CHECK(ParseModelConfig(config, &generation)->eos_ids == std::vector<int32_t>{100001});
  for (const json& bad :
       {json(-1), json(102400), json("x"), json(1.0), json({1, -2}), json(true)}) {
    generation = {{"eos_token_id", bad}};
    const auto parsed = ParseModelConfig(config, &generation);
    REQUIRE_FALSE(parsed.ok());
    CHECK(Mentions(parsed.status().message(), "generation_config.json: eos_token_id"));
  }
}

TEST_CASE("a model directory's files") {
  const testing::TempDir dir;
  CHECK(LoadModelConfig(dir.path()).status().code() == StatusCode::kNotFound);
  dir.Write("config.json", HfConfig("kimi_k2").dump());
  REQUIRE(LoadModelConfig(dir.path()).ok());
  CHECK(LoadModelConfig(dir.path())->eos_ids == std::vector<int32_t>{163585});
  dir.Write("generation_config.json", R"({"eos_token_id": 163586})");
  CHECK(LoadModelConfig(dir.path())->eos_ids == std::vector<int32_t>{163586});
  dir.Write("generation_config.json", "{");
  CHECK(Mentions(LoadModelConfig(dir.path()).status().message(), "generation_config.json"));
  dir.Write("generation_config.json", "{}");
  for (const std::string& bad :
       {std::string("{\"hidden_size\": 1, \"hidden_size\": 2}"), std::string(""),
        std::string("{\"a\": \"\xff\"}"), std::string(100000, '['), std::string("[]")}) {
    dir.Write("config.json", bad);
    const auto parsed = LoadModelConfig(dir.path());
    REQUIRE_FALSE(parsed.ok());
    CHECK(Mentions(parsed.status().message(), dir.path() + "/config.json"));
  }
}

}  // namespace
}  // namespace hadal
