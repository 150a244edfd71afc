#include "client/model_info.h"

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "common/tensor_inventory.h"
#include "tests/common/hf_configs.h"
#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"
#include "tests/support/mentions.h"

namespace hadal {
namespace {
using nlohmann::json;
using testing::FileTensor;
using testing::Mentions;
using testing::SafetensorsBytes;
using testing::TempDir;

// 6 heads, widths and a vocabulary that 2 and 3 ranks do not divide.
json SmallConfig() {
  json config = testing::HfConfig("v3");
  config.update({{"vocab_size", 101},
                 {"hidden_size", 70},
                 {"intermediate_size", 131},
                 {"moe_intermediate_size", 13},
                 {"num_hidden_layers", 3},
                 {"first_k_dense_replace", 1},
                 {"num_attention_heads", 6},
                 {"num_key_value_heads", 6},
                 {"n_routed_experts", 12},
                 {"n_group", 1},
                 {"topk_group", 1},
                 {"num_experts_per_tok", 4},
                 {"q_lora_rank", nullptr},
                 {"kv_lora_rank", 33},
                 {"qk_nope_head_dim", 10},
                 {"qk_rope_head_dim", 6},
                 {"v_head_dim", 7}});
  config["quantization_config"]["weight_block_size"] = {16, 16};
  return config;
}

// Writes config and tensors; returns the bytes of all tensors.
int64_t WriteModel(const TempDir& dir, const json& config) {
  dir.Write("config.json", config.dump());
  std::vector<FileTensor> tensors;
  int64_t bytes = 0;
  for (const ExpectedTensor& tensor : ExpectedTensors(*ParseModelConfig(config, nullptr))) {
    tensors.push_back({tensor.name, std::string(DTypeName(tensor.dtypes[0])), tensor.shape});
    int64_t size = DTypeSize(tensor.dtypes[0]);
    for (const int64_t n : tensor.shape) size *= n;
    bytes += size;
  }
  dir.Write("model.safetensors", SafetensorsBytes(tensors));
  return bytes;
}

json Describe(const std::string& path, int tensor_parallel, int data_parallel) {
  const auto text = DescribeModel({path, tensor_parallel, data_parallel, true});
  INFO(text.status().message());
  REQUIRE(text.ok());
  return json::parse(*text);
}

TEST_CASE("a config file alone: V3's published numbers") {
  const json info = Describe("configs/config_671B.json", 16, 1);
  CHECK(info["parameters"] == 671'026'419'200);
  CHECK(info["kv_bytes_per_token"] == 70272);
  CHECK(info["fingerprint"].is_null());
  CHECK(info["config"]["topk_method"] == "noaux_tc");
  CHECK(info["config"]["norm_eps"] == 1e-6);
  REQUIRE(info["ranks"].size() == 16);
  std::map<std::string, json> tensors;
  for (const json& tensor : info["ranks"][5]["tensors"]) tensors[tensor["name"]] = tensor;
  const std::string layer = "model.layers.*.";
  CHECK(tensors[layer + "self_attn.q_b_proj.weight"]["shape"] == json({1536, 1536}));
  CHECK(tensors[layer + "self_attn.kv_b_proj.weight"]["shape"] == json({2048, 512}));
  CHECK(tensors[layer + "self_attn.o_proj.weight"]["shape"] == json({7168, 1024}));
  CHECK(tensors[layer + "mlp.gate_proj.weight"]["shape"] == json({1152, 7168}));
  CHECK(tensors[layer + "mlp.shared_experts.up_proj.weight"]["shape"] == json({128, 7168}));
  CHECK(tensors[layer + "mlp.experts.*.up_proj.weight"]["count"] == 16 * 58);
  CHECK(tensors["lm_head.weight"]["shape"] == json({8080, 7168}));
  const double gib = info["ranks"][5]["weight_bytes"].get<double>() / (1 << 30);
  CHECK(gib == Approx(40.2).margin(0.05));

  const auto text = DescribeModel({"configs/config_671B.json", 16, 1, false});
  REQUIRE(text.ok());
  CHECK(Mentions(*text, "671026419200 in all"));
  CHECK(Mentions(*text, "ranks 0 to 15, each: 40.18 GiB"));
  CHECK(Mentions(*text, "no tensor was checked"));
  // The longest name, and a type behind it.
  CHECK(Mentions(*text, "  model.layers.*.mlp.shared_experts.down_proj.weight_scale_inv F32 "));
}

TEST_CASE("the ranks of a layout hold every byte of a checkpoint once per copy") {
  const TempDir dir;
  json config = SmallConfig();
  config.erase("quantization_config");  // scales of ragged slices are held twice
  const int64_t file_bytes = WriteModel(dir, config);
  CHECK(Describe(dir.path(), 1, 1)["ranks"][0]["weight_bytes"] == file_bytes);
  for (const auto& [t, d] : {std::pair{2, 1}, {3, 1}, {6, 1}, {1, 4}, {3, 2}, {6, 2}}) {
    const json info = Describe(dir.path(), t, d);
    REQUIRE(info["ranks"].size() == static_cast<size_t>(t * d));
    const json whole = Describe(dir.path(), 1, 1)["ranks"][0]["tensors"];
    for (size_t i = 0; i < whole.size(); ++i) {
      int64_t bytes = 0;
      for (const json& rank : info["ranks"]) bytes += rank["tensors"][i]["bytes"].get<int64_t>();
      const std::string kind = whole[i]["kind"];
      const std::string name = whole[i]["name"];
      const bool replicated = kind == "norms" || kind == "router" || Mentions(name, "kv_a_");
      const int copies = kind == "routed experts" ? 1 : replicated ? t * d : d;
      INFO(name << " " << t << " x " << d);
      CHECK(bytes == copies * whole[i]["bytes"].get<int64_t>());
    }
  }
  const auto text = DescribeModel({dir.path(), 2, 1, false});
  REQUIRE(text.ok());
  CHECK(Mentions(*text, "[65, 70] or [66, 70]"));
  CHECK(Mentions(*text, "fingerprint"));
  CHECK(Mentions(*text, "rank 0: "));
  CHECK(Mentions(*text, "rank 1: "));
}

TEST_CASE("what cannot be loaded is refused with all reasons") {
  const TempDir dir;
  CHECK(DescribeModel({dir.path(), 1, 1, false}).status().code() == StatusCode::kNotFound);
  json config = SmallConfig();
  WriteModel(dir, config);
  CHECK(DescribeModel({dir.path(), 1, 1, false}).ok());

  config["vocab_size"] = 102;  // embedding and head no longer fit
  dir.Write("config.json", config.dump());
  const Status both = DescribeModel({dir.path(), 4, 1, false}).status();
  CHECK(both.code() == StatusCode::kFailedPrecondition);
  for (const char* reason : {"4 does not divide 6 heads", "2 x 2, 1 x 4",
                             "misshaped: model.embed_tokens.weight", "misshaped: lm_head.weight"}) {
    CHECK(Mentions(both.message(), reason));
  }
  config["hidden_act"] = "gelu";
  config["attention_bias"] = true;
  dir.Write("config.json", config.dump());
  const Status shape = DescribeModel({dir.path(), 1, 1, false}).status();
  CHECK(Mentions(shape.message(), "hidden_act"));
  CHECK(Mentions(shape.message(), "attention_bias"));
  dir.Write("config.json", SmallConfig().dump());
  dir.Write("model.safetensors", "short");
  CHECK(Mentions(DescribeModel({dir.path(), 1, 1, false}).status().message(), "model.safetensors"));
  std::filesystem::remove(dir.path() + "/model.safetensors");
  CHECK(Mentions(DescribeModel({dir.path(), 1, 1, false}).status().message(), "no *.safetensors"));
}

}  // namespace
}  // namespace hadal
