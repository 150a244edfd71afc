#include "common/converted_checkpoint.h"

#include <filesystem>

#include "tests/common/odd_config.h"
#include "tests/common/temp_model_dir.h"
#include "tests/support/catch.h"

namespace hadal {
namespace {
using testing::FileTensor;
using testing::OddConfig;
using testing::TempDir;

TEST_CASE("names of the reference") {
  const std::vector<std::pair<std::string, std::string>> names = {
      {"model.embed_tokens.weight", "embed.weight"},
      {"lm_head.weight", "head.weight"},
      {"model.norm.weight", "norm.weight"},
      {"model.layers.3.input_layernorm.weight", "layers.3.attn_norm.weight"},
      {"model.layers.3.post_attention_layernorm.weight", "layers.3.ffn_norm.weight"},
      {"model.layers.0.self_attn.q_proj.weight", "layers.0.attn.wq.weight"},
      {"model.layers.3.self_attn.q_a_proj.weight", "layers.3.attn.wq_a.weight"},
      {"model.layers.3.self_attn.q_a_layernorm.weight", "layers.3.attn.q_norm.weight"},
      {"model.layers.3.self_attn.q_b_proj.weight_scale_inv", "layers.3.attn.wq_b.scale"},
      {"model.layers.3.self_attn.kv_a_proj_with_mqa.weight", "layers.3.attn.wkv_a.weight"},
      {"model.layers.3.self_attn.kv_a_layernorm.weight", "layers.3.attn.kv_norm.weight"},
      {"model.layers.3.self_attn.kv_b_proj.weight", "layers.3.attn.wkv_b.weight"},
      {"model.layers.3.self_attn.o_proj.weight", "layers.3.attn.wo.weight"},
      {"model.layers.3.mlp.gate.weight", "layers.3.ffn.gate.weight"},
      {"model.layers.3.mlp.gate.e_score_correction_bias", "layers.3.ffn.gate.bias"},
      {"model.layers.3.mlp.experts.17.gate_proj.weight", "layers.3.ffn.experts.17.w1.weight"},
      {"model.layers.3.mlp.experts.17.up_proj.weight", "layers.3.ffn.experts.17.w3.weight"},
      {"model.layers.3.mlp.shared_experts.down_proj.weight_scale_inv",
       "layers.3.ffn.shared_experts.w2.scale"}};
  for (const auto& [hugging_face, reference] : names) {
    CHECK(ReferenceTensorName(hugging_face) == reference);
  }
}

void WriteRank(const TempDir& dir, const ModelConfig& config, const Layout& layout, size_t skip) {
  std::vector<FileTensor> tensors;
  for (const RankTensor& tensor : RankTensors(config, layout)) {
    std::vector<int64_t> shape = {tensor.slice.rows.size()};
    if (tensor.whole.shape.size() == 2) shape.push_back(tensor.slice.columns.size());
    tensors.push_back({.name = tensor.name,
                       .dtype = std::string(DTypeName(tensor.whole.dtypes[0])),
                       .shape = shape,
                       .fill = static_cast<char>(layout.rank + 1)});
  }
  if (skip < tensors.size()) tensors.erase(tensors.begin() + static_cast<int64_t>(skip));
  dir.Write(ConvertedFileName(layout.rank, layout.tensor_parallel),
            testing::SafetensorsBytes(tensors));
}

TEST_CASE("a rank finds its slices under Hugging Face's names") {
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    const ModelConfig config = OddConfig(dtype);
    const TempDir dir;
    for (int rank = 0; rank < 3; ++rank) WriteRank(dir, config, {3, 1, rank}, SIZE_MAX);
    CHECK(*ConvertedRanks(dir.path()) == 3);
    for (int rank = 0; rank < 3; ++rank) {
      const auto checkpoint = OpenCheckpoint(dir.path(), config, {3, 1, rank});
      INFO(checkpoint.status().message());
      REQUIRE(checkpoint.ok());
      const auto* entry = (*checkpoint)->Find("model.layers.0.mlp.down_proj.weight");
      REQUIRE(entry != nullptr);
      CHECK(entry->info.shape == std::vector<int64_t>{70, 130});
      CHECK(entry->columns == SplitRange(130, 3, rank));
      CHECK(entry->At(0, entry->columns.begin) == entry->data().data());
      CHECK(*entry->At(69, entry->columns.end - 1) == std::byte(rank + 1));
      const int own = rank * 4;
      const auto expert = [&](int e) {
        return (*checkpoint)->Find(fmt::format("model.layers.1.mlp.experts.{}.up_proj.weight", e));
      };
      CHECK(expert(own) != nullptr);
      CHECK(expert((own + 4) % 12) == nullptr);
    }
  }
}

TEST_CASE("what does not fit a converted directory is refused") {
  const ModelConfig config = OddConfig(DType::kBF16);
  const TempDir dir;
  CHECK(*ConvertedRanks(dir.path()) == 0);
  CHECK_FALSE(ConvertedRanks(dir.path() + "/none").ok());
  for (int rank = 0; rank < 2; ++rank)
    WriteRank(dir, config, {2, 1, rank}, rank == 1 ? 5 : SIZE_MAX);
  CHECK(OpenCheckpoint(dir.path(), config, {2, 1, 0}).ok());
  const Status missing = OpenCheckpoint(dir.path(), config, {2, 1, 1}).status();
  CHECK(missing.message().find("model1-mp2.safetensors") != std::string::npos);
  CHECK(missing.message().find("missing: layers.0.attn.wkv_a.weight") != std::string::npos);
  for (const Layout& layout : {Layout{1, 1, 0}, Layout{1, 2, 0}, Layout{4, 1, 0}}) {
    const Status status = OpenCheckpoint(dir.path(), config, layout).status();
    CHECK(status.code() == StatusCode::kFailedPrecondition);
    CHECK(status.message().find("converted for 2 tensor-parallel ranks") != std::string::npos);
  }
  for (const char* other : {"model2-mp2.safetensors", "model0-mp02.safetensors",
                            "model-1-mp2.safetensors", "model0-mp99999999999.safetensors"}) {
    dir.Write(other, "");  // none of ours
    CHECK(*ConvertedRanks(dir.path()) == 2);
  }
  WriteRank(dir, config, {4, 1, 1}, SIZE_MAX);
  CHECK(ConvertedRanks(dir.path()).status().message().find("2 and 4 ranks") != std::string::npos);
  std::filesystem::remove(dir.path() + "/model1-mp4.safetensors");
  std::filesystem::remove(dir.path() + "/model0-mp2.safetensors");
  CHECK(ConvertedRanks(dir.path()).status().message().find("model0-mp2.safetensors is missing") !=
        std::string::npos);
}

}  // namespace
}  // namespace hadal
