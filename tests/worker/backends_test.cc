#include "worker/backends.h"

#include "tests/support/catch.h"

namespace hadal {
namespace {

ModelConfig Config(DType dtype) {
  ModelConfig config;  // the released dimensions
  config.dtype = dtype;
  return config;
}

TEST_CASE("activations are rounded where the released attention kernels run, and only there") {
  for (const DType weights : {DType::kBF16, DType::kF8E4M3}) {
    ModelConfig config = Config(weights);
    CHECK(*ActivationsOf("auto", config) == DType::kBF16);
    CHECK(*ActivationsOf("float32", config) == DType::kF32);
    for (int64_t ModelConfig::* dim :
         {&ModelConfig::kv_lora_rank, &ModelConfig::qk_rope_head_dim, &ModelConfig::qk_nope_head_dim,
          &ModelConfig::v_head_dim}) {
      config = Config(weights);
      config.*dim /= 2;
      CHECK(*ActivationsOf("auto", config) == DType::kF32);
      CHECK(*ActivationsOf("bfloat16", config) == DType::kBF16);
    }
  }
}

TEST_CASE("F32 checkpoints are never computed in bf16") {
  const ModelConfig config = Config(DType::kF32);
  CHECK(*ActivationsOf("auto", config) == DType::kF32);
  CHECK(*ActivationsOf("float32", config) == DType::kF32);
  const auto refused = ActivationsOf("bfloat16", config);
  REQUIRE(!refused.ok());
  CHECK(refused.status().code() == StatusCode::kInvalidArgument);
  CHECK(refused.status().message().find("--activations bfloat16") != std::string::npos);
}

}  // namespace
}  // namespace hadal
