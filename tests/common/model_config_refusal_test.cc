#include <cmath>
#include <nlohmann/json.hpp>

#include "common/model_config.h"
#include "tests/common/hf_configs.h"
#include "tests/common/parsed_config.h"
#include "tests/support/catch.h"
#include "tests/support/mentions.h"

namespace hadal {
namespace {
using nlohmann::json;
using testing::HfConfig;
using testing::Mentions;
using testing::Refusal;

TEST_CASE("other architectures are refused by name") {
  json config = HfConfig("v3");
  config["architectures"] = {"DeepseekV32ForCausalLM"};
  config["model_type"] = "deepseek_v32";
  const std::string message = Refusal(config);
  CHECK(Mentions(message, "DeepseekV32ForCausalLM"));
  CHECK(Mentions(message, "deepseek_v32"));
  const json llama = {
      {"architectures", {"LlamaForCausalLM"}}, {"model_type", "llama"}, {"hidden_size", 576}};
  CHECK(Mentions(Refusal(llama), "LlamaForCausalLM"));
  CHECK_FALSE(Mentions(Refusal(llama), "missing"));  // its other fields say nothing
  CHECK(Mentions(Refusal({{"hidden_size", 576}}), "architectures"));
  CHECK(Mentions(Refusal(json::object()), "hidden_size"));
  CHECK(Mentions(Refusal(json::array()), "JSON object"));
  CHECK(Mentions(Refusal({{"hidden_size", 1}, {"dim", 1}}), "mixed"));
}

TEST_CASE("all problems are listed at once") {
  json config = HfConfig("v3");
  config["attention_bias"] = true;
  config["hidden_act"] = "gelu";
  config["tie_word_embeddings"] = true;
  config["moe_layer_freq"] = 2;
  config["num_key_value_heads"] = 8;
  config["index_topk"] = 2048;
  config["scoring_func"] = "tanh";
  config["topk_method"] = "sinkhorn";
  config["rope_scaling"]["type"] = "longrope";
  config["num_hidden_layers"] = "61";
  config.erase("kv_lora_rank");
  config["quantization_config"]["activation_scheme"] = "static";
  const std::string message = Refusal(config);
  for (const char* word :
       {"attention_bias: true", "hidden_act: \"gelu\"", "tie_word_embeddings: true",
        "moe_layer_freq: 2", "num_key_value_heads: 8", "index_topk", "scoring_func: \"tanh\"",
        "topk_method: \"sinkhorn\"", "rope_scaling.type: \"longrope\"",
        "num_hidden_layers: must be an integer", "kv_lora_rank: missing", "activation_scheme",
        "(12 problems)"}) {
    INFO(message);
    CHECK(Mentions(message, word));
  }
}

TEST_CASE("sizes out of range, of the wrong type or that do not fit together") {
  const std::vector<std::string> sizes = {"vocab_size",
                                          "hidden_size",
                                          "intermediate_size",
                                          "moe_intermediate_size",
                                          "num_hidden_layers",
                                          "num_attention_heads",
                                          "n_routed_experts",
                                          "num_experts_per_tok",
                                          "kv_lora_rank",
                                          "qk_nope_head_dim",
                                          "qk_rope_head_dim",
                                          "v_head_dim",
                                          "max_position_embeddings",
                                          "n_group",
                                          "topk_group"};
  const std::vector<json> bad = {0,         -1,        1.5,           2048.0,
                                 true,      "8",       json::array(), json::object(),
                                 INT64_MAX, INT64_MIN, UINT64_MAX,    1e300};
  for (const std::string& key : sizes) {
    for (const json& value : bad) {
      json config = HfConfig("v3");
      config[key] = value;
      INFO(key << " " << value.dump());
      CHECK(Mentions(Refusal(config), "\n  " + key + ": "));
    }
  }
  const std::vector<std::pair<std::string, json>> misfits = {
      {"qk_rope_head_dim", 63}, {"num_experts_per_tok", 129},  {"n_group", 7},
      {"topk_group", 9},        {"first_k_dense_replace", 62}, {"n_routed_experts", 8192},
      {"n_group", 256}};
  for (const auto& [key, value] : misfits) {
    json config = HfConfig("v3");
    config[key] = value;
    INFO(key << " " << value.dump());
    CHECK(Mentions(Refusal(config), "\n  " + key + ": "));
  }
  for (const char* key : {"rms_norm_eps", "rope_theta", "routed_scaling_factor"}) {
    for (const json& value : {json(0), json(-1), json(1e300), json("1"), json(NAN)}) {
      json config = HfConfig("v3");
      config[key] = value;
      CHECK(Mentions(Refusal(config), key));
    }
  }
}

TEST_CASE("rotary scaling that Hadal does not compute is refused") {
  json config = HfConfig("v3");
  config["rope_scaling"]["mscale"] = 0.5;
  CHECK(Mentions(Refusal(config), "rope_scaling.mscale"));
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 2}};
  CHECK(Mentions(Refusal(config), "\"linear\""));
  config["rope_scaling"] = {{"type", "yarn"}};
  CHECK(Mentions(Refusal(config), "rope_scaling.factor: missing"));
  config["rope_scaling"] = 3;
  CHECK(Mentions(Refusal(config), "rope_scaling: must be a JSON object"));
}

}  // namespace
}  // namespace hadal
