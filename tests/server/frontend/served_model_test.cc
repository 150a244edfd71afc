#include "server/frontend/served_model.h"

#include "tests/common/hf_configs.h"
#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"
#include "tests/support/mentions.h"

namespace hadal {
namespace {
using nlohmann::json;
using testing::Mentions;

TEST_CASE("--config may not differ in size from what the workers load") {
  const testing::TempDir dir;
  const json own = testing::HfConfig("v3");
  dir.Write("config.json", own.dump());
  const std::string other = dir.path() + "/other.json";
  const auto load = [&](const json& config) {
    dir.Write("other.json", config.dump());
    return LoadServedModel({.model_dir = dir.path(), .config_file = other});
  };
  const auto same = load(own);
  INFO(same.status().message());
  REQUIRE(same.ok());
  CHECK((*same)->fingerprint == (*LoadServedModel({.model_dir = dir.path()}))->fingerprint);

  json shorter = own;
  shorter["max_position_embeddings"] = 8192;
  REQUIRE(load(shorter).ok());
  CHECK((*load(shorter))->context_length == 8192);

  for (const char* size :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "n_routed_experts",
        "kv_lora_rank", "v_head_dim", "max_position_embeddings"}) {
    json config = own;
    config[size] = own[size].get<int64_t>() * 2;
    const auto refused = load(config);
    CAPTURE(size, refused.status().message());
    REQUIRE(refused.status().code() == StatusCode::kInvalidArgument);
    CHECK(Mentions(refused.status().message(), "--config " + other));
    CHECK(Mentions(refused.status().message(), "which the workers load"));
  }
}

}  // namespace
}  // namespace hadal
