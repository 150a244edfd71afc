#include <algorithm>

#include "common/tensor_inventory.h"
#include "tests/common/odd_config.h"
#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"
#include "tests/support/mentions.h"

namespace hadal {
namespace {
using testing::FileTensor;
using testing::Mentions;
using testing::OddConfig;
using testing::SafetensorsBytes;
using testing::TempDir;

std::vector<FileTensor> FilesOf(const ModelConfig& config) {
  std::vector<FileTensor> out;
  for (const ExpectedTensor& tensor : ExpectedTensors(config)) {
    out.push_back({tensor.name, std::string(DTypeName(tensor.dtypes[0])), tensor.shape});
  }
  return out;
}

Status Validate(const ModelConfig& config, const std::vector<FileTensor>& tensors) {
  const TempDir dir;
  dir.Write("model.safetensors", SafetensorsBytes(tensors));
  const auto checkpoint = Checkpoint::Open(dir.path());
  INFO(checkpoint.status().message());
  REQUIRE(checkpoint.ok());
  return ValidateCheckpoint(config, **checkpoint);
}

TEST_CASE("a checkpoint that fits, with extras that are known") {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    ModelConfig config = OddConfig(dtype);
    std::vector<FileTensor> tensors = FilesOf(config);
    CHECK(Validate(config, tensors).ok());
    config.n_mtp_layers = 1;
    tensors.push_back({"model.layers.3.eh_proj.weight", "BF16", {2, 2}});
    tensors.push_back({"model.layers.3.mlp.experts.0.up_proj.weight", "I64", {2}});
    tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {3}});
    CHECK(Validate(config, tensors).ok());
  }
}

TEST_CASE("norms, gates and the correction bias may be of either precision") {
  const ModelConfig config = OddConfig(DType::kBF16);
  std::vector<FileTensor> tensors = FilesOf(config);
  for (FileTensor& tensor : tensors) {
    if (Mentions(tensor.name, "norm") || Mentions(tensor.name, ".gate.")) tensor.dtype = "F32";
  }
  CHECK(Validate(config, tensors).ok());
}

TEST_CASE("everything wrong with a checkpoint is listed at once") {
  const ModelConfig config = OddConfig(DType::kF8E4M3);
  std::vector<FileTensor> tensors = FilesOf(config);
  const auto find = [&](const std::string& name) {
    return std::find_if(tensors.begin(), tensors.end(),
                        [&](const FileTensor& tensor) { return tensor.name == name; });
  };
  find("lm_head.weight")->shape = {102, 70};
  find("model.layers.2.self_attn.o_proj.weight")->dtype = "BF16";
  find("model.layers.2.self_attn.o_proj.weight_scale_inv")->shape = {5, 5};
  find("model.layers.0.input_layernorm.weight")->dtype = "F16";
  find("model.layers.0.post_attention_layernorm.weight")->shape = {70, 1};
  tensors.erase(find("model.layers.1.mlp.gate.e_score_correction_bias"));
  tensors.erase(find("model.layers.1.mlp.experts.11.down_proj.weight_scale_inv"));
  tensors.push_back({"model.layers.0.self_attn.q_proj.weight", "BF16", {1}});
  tensors.push_back({"model.layers.7.input_layernorm.weight", "BF16", {70}});
  tensors.push_back({"model.layers.0.mlp.up_proj.bias", "BF16", {130}});
  const Status status = Validate(config, tensors);
  CHECK(status.code() == StatusCode::kFailedPrecondition);
  for (const char* line :
       {"(10 problems)", "misshaped: lm_head.weight is [102, 70], the config calls for [101, 70]",
        "wrong dtype: model.layers.2.self_attn.o_proj.weight is BF16, the config calls for F8_E4M3",
        "misshaped: model.layers.2.self_attn.o_proj.weight_scale_inv is [5, 5], the config calls "
        "for [5, 6]",
        "wrong dtype: model.layers.0.input_layernorm.weight is F16, the config calls for BF16 or "
        "F32",
        "misshaped: model.layers.0.post_attention_layernorm.weight is [70, 1]",
        "missing: model.layers.1.mlp.gate.e_score_correction_bias [12]",
        "missing: model.layers.1.mlp.experts.11.down_proj.weight_scale_inv [5, 1]",
        "extra: model.layers.0.self_attn.q_proj.weight", "extra: model.layers.7.input_layernorm",
        "extra: model.layers.0.mlp.up_proj.bias"}) {
    INFO(status.message());
    CHECK(Mentions(status.message(), line));
  }
}

}  // namespace
}  // namespace hadal
