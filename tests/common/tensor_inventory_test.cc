#include "common/tensor_inventory.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/common/hf_configs.h"
#include "tests/common/odd_config.h"
#include "tests/common/parsed_config.h"
#include "tests/support/catch.h"
#include "tests/support/mentions.h"

namespace hadal {
namespace {
using testing::HfConfig;
using testing::Mentions;
using testing::OddConfig;
using testing::Released;

std::map<std::string, ExpectedTensor> ByName(const ModelConfig& config) {
  std::map<std::string, ExpectedTensor> out;
  for (ExpectedTensor& tensor : ExpectedTensors(config)) out.emplace(tensor.name, tensor);
  return out;
}

TEST_CASE("V3's tensors: names, shapes and numbers of the published checkpoint") {
  const ModelConfig config = Released("v3");
  const auto tensors = ByName(config);
  const auto shape = [&](const std::string& name) {
    INFO(name);
    REQUIRE(tensors.count(name) == 1);
    return tensors.at(name).shape;
  };
  using Shape = std::vector<int64_t>;
  CHECK(shape("model.embed_tokens.weight") == Shape{129280, 7168});
  CHECK(shape("lm_head.weight") == Shape{129280, 7168});
  CHECK(shape("model.norm.weight") == Shape{7168});
  const std::string a = "model.layers.0.self_attn.";
  CHECK(shape(a + "q_a_proj.weight") == Shape{1536, 7168});
  CHECK(shape(a + "q_a_proj.weight_scale_inv") == Shape{12, 56});
  CHECK(shape(a + "q_b_proj.weight") == Shape{24576, 1536});
  CHECK(shape(a + "q_b_proj.weight_scale_inv") == Shape{192, 12});
  CHECK(shape(a + "kv_a_proj_with_mqa.weight") == Shape{576, 7168});
  CHECK(shape(a + "kv_a_proj_with_mqa.weight_scale_inv") == Shape{5, 56});
  CHECK(shape(a + "kv_b_proj.weight") == Shape{32768, 512});
  CHECK(shape(a + "kv_b_proj.weight_scale_inv") == Shape{256, 4});
  CHECK(shape(a + "o_proj.weight") == Shape{7168, 16384});
  CHECK(shape(a + "o_proj.weight_scale_inv") == Shape{56, 128});
  CHECK(shape("model.layers.2.mlp.gate_proj.weight") == Shape{18432, 7168});
  CHECK(shape("model.layers.2.mlp.down_proj.weight_scale_inv") == Shape{56, 144});
  CHECK(shape("model.layers.3.mlp.gate.weight") == Shape{256, 7168});
  CHECK(shape("model.layers.3.mlp.gate.e_score_correction_bias") == Shape{256});
  CHECK(shape("model.layers.60.mlp.experts.255.down_proj.weight") == Shape{7168, 2048});
  CHECK(shape("model.layers.3.mlp.shared_experts.up_proj.weight_scale_inv") == Shape{16, 56});
  CHECK(tensors.count("model.layers.2.mlp.gate.weight") == 0);
  CHECK(tensors.count("model.layers.61.input_layernorm.weight") == 0);
  CHECK(tensors.at("lm_head.weight").dtypes == std::vector{DType::kBF16});
  CHECK(tensors.at(a + "o_proj.weight").dtypes == std::vector{DType::kF8E4M3});

  // 671.03 billion parameters in the main model, scales not counted.
  int64_t parameters = 0;
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.scaled_shape.empty()) continue;
    int64_t n = 1;
    for (const int64_t size : tensor.shape) n *= size;
    parameters += n;
  }
  CHECK(parameters == 671'026'419'200);
}

TEST_CASE("plain q, no shared experts, no gate bias") {
  auto tensors = ByName(Released("v2_lite"));
  CHECK(tensors.count("model.layers.5.self_attn.q_proj.weight") == 1);
  CHECK(tensors.count("model.layers.5.self_attn.q_a_proj.weight") == 0);
  CHECK(tensors.count("model.layers.5.mlp.gate.e_score_correction_bias") == 0);
  CHECK(tensors.at("model.layers.5.mlp.shared_experts.gate_proj.weight").shape[0] == 2816);
  ModelConfig config = OddConfig(DType::kF32);
  config.n_shared_experts = 0;
  tensors = ByName(config);
  for (const auto& [name, tensor] : tensors) {
    CHECK_FALSE(Mentions(name, "shared_experts"));
    CHECK(tensor.dtypes == std::vector{DType::kF32});
  }
}

// How often each entry of a tensor is held, over all ranks of a layout.
std::vector<int> Cover(const ModelConfig& config, const ExpectedTensor& tensor, Layout layout) {
  const int64_t columns = tensor.shape.size() == 2 ? tensor.shape[1] : 1;
  std::vector<int> held(static_cast<size_t>(tensor.shape[0] * columns));
  for (layout.rank = 0; layout.rank < layout.world(); ++layout.rank) {
    const TensorSlice slice = SliceForRank(config, tensor, layout);
    REQUIRE(slice.rows.begin >= 0);
    REQUIRE(slice.rows.end <= tensor.shape[0]);
    REQUIRE(slice.columns.end <= columns);
    for (int64_t r = slice.rows.begin; r < slice.rows.end; ++r) {
      for (int64_t c = slice.columns.begin; c < slice.columns.end; ++c) {
        ++held[static_cast<size_t>(r * columns + c)];
      }
    }
  }
  return held;
}

int TimesHeld(const ExpectedTensor& tensor, const Layout& layout) {
  if (tensor.split == Split::kReplicate) return layout.world();
  return tensor.split == Split::kExpert ? 1 : layout.data_parallel;
}

TEST_CASE("slices of every legal layout tile every tensor") {
  const ModelConfig config = OddConfig(DType::kBF16);
  const std::vector<ExpectedTensor> tensors = ExpectedTensors(config);
  int layouts = 0;
  for (int t = 1; t <= 12; ++t) {
    for (int d = 1; d <= 12; ++d) {
      const Layout layout{t, d, 0};
      const bool legal = 12 % t == 0 && 12 % (t * d) == 0;
      REQUIRE(ValidateLayout(config, layout).ok() == legal);
      if (!legal) continue;
      ++layouts;
      for (const ExpectedTensor& tensor : tensors) {
        const std::vector<int> held = Cover(config, tensor, layout);
        INFO(tensor.name << " " << t << " x " << d);
        const int times = TimesHeld(tensor, layout);
        CHECK(std::all_of(held.begin(), held.end(), [&](int n) { return n == times; }));
      }
    }
  }
  CHECK(layouts == 18);
}

TEST_CASE("a rank's scales are those that its slice touches") {
  const ModelConfig config = OddConfig(DType::kF8E4M3);
  const auto tensors = ByName(config);
  for (const Layout shape :
       {Layout{1, 1, 0}, Layout{4, 1, 0}, Layout{12, 1, 0}, Layout{3, 2, 0}, Layout{1, 4, 0}}) {
    for (int rank = 0; rank < shape.world(); ++rank) {
      const Layout layout{shape.tensor_parallel, shape.data_parallel, rank};
      for (const auto& [name, weight] : tensors) {
        if (weight.scale_name.empty()) continue;
        const ExpectedTensor& scale = tensors.at(weight.scale_name);
        const TensorSlice w = SliceForRank(config, weight, layout);
        const TensorSlice s = SliceForRank(config, scale, layout);
        INFO(name << " rank " << rank);
        if (w.rows.size() == 0 || w.columns.size() == 0) {
          CHECK((s.rows.size() == 0 || s.columns.size() == 0));
          continue;
        }
        CHECK(s.rows.begin == w.rows.begin / 16);
        CHECK(s.rows.end == (w.rows.end - 1) / 16 + 1);
        CHECK(s.columns.begin == w.columns.begin / 16);
        CHECK(s.columns.end == (w.columns.end - 1) / 16 + 1);
        CHECK(s.rows.end <= scale.shape[0]);
        CHECK(s.columns.end <= scale.shape[1]);
      }
    }
  }
}

TEST_CASE("slices by hand") {
  const ModelConfig config = OddConfig(DType::kBF16);
  const auto tensors = ByName(config);
  const Layout rank3{4, 1, 3};  // 3 heads per rank
  const auto slice = [&](const std::string& name, const Layout& layout) {
    return SliceForRank(config, tensors.at(name), layout);
  };
  CHECK(slice("model.layers.0.self_attn.q_b_proj.weight", rank3).rows == Range{144, 192});
  CHECK(slice("model.layers.0.self_attn.kv_b_proj.weight", rank3).rows == Range{153, 204});
  CHECK(slice("model.layers.0.self_attn.o_proj.weight", rank3).columns == Range{63, 84});
  CHECK(slice("model.layers.0.self_attn.o_proj.weight", rank3).rows == Range{0, 70});
  CHECK(slice("model.layers.0.self_attn.q_a_proj.weight", rank3).rows == Range{0, 50});
  CHECK(slice("model.layers.0.mlp.up_proj.weight", rank3).rows == Range{97, 130});
  CHECK(slice("model.layers.0.mlp.down_proj.weight", rank3).columns == Range{97, 130});
  CHECK(slice("model.embed_tokens.weight", rank3).rows == Range{75, 101});
  CHECK(slice("model.layers.1.mlp.shared_experts.down_proj.weight", rank3).columns ==
        Range{29, 39});
  CHECK(slice("model.norm.weight", rank3).rows == Range{0, 70});
  CHECK(slice("model.norm.weight", rank3).columns == Range{0, 1});
  // 2 x 2: rank 2 is the first of the second group; experts 6, 7, 8 are its own.
  const Layout rank2{2, 2, 2};
  CHECK(slice("model.layers.0.mlp.up_proj.weight", rank2).rows == Range{0, 65});
  for (int e = 0; e < 12; ++e) {
    const auto own = slice(fmt::format("model.layers.2.mlp.experts.{}.up_proj.weight", e), rank2);
    CHECK(own.rows.size() == (e >= 6 && e < 9 ? 13 : 0));
  }
}

TEST_CASE("layouts that do not divide are refused with those that do") {
  const ModelConfig v2_lite = Released("v2_lite");
  CHECK(ValidateLayout(v2_lite, {16, 1, 0}).ok());
  CHECK(ValidateLayout(v2_lite, {16, 4, 63}).ok());
  const Status heads = ValidateLayout(v2_lite, {32, 1, 0});
  CHECK(heads.code() == StatusCode::kInvalidArgument);
  CHECK(Mentions(heads.message(), "32 does not divide 16 heads"));
  CHECK(Mentions(heads.message(), ": 16 x 2, 8 x 4, 4 x 8, 2 x 16, 1 x 32"));
  const Status experts = ValidateLayout(v2_lite, {3, 2, 0});
  CHECK(Mentions(experts.message(), "3 does not divide 16 heads and 6 ranks do not divide 64"));
  CHECK(Mentions(experts.message(), "legal numbers of ranks: 1, 2, 4, 8, 16, 32, 64"));
  CHECK_FALSE(ValidateLayout(v2_lite, {0, 1, 0}).ok());
  CHECK_FALSE(ValidateLayout(v2_lite, {1, -1, 0}).ok());
  CHECK_FALSE(ValidateLayout(v2_lite, {2, 1, 2}).ok());
  CHECK_FALSE(ValidateLayout(v2_lite, {2, 1, -1}).ok());
  CHECK_FALSE(ValidateLayout(v2_lite, {1 << 20, 1 << 20, 0}).ok());
  ModelConfig dense = v2_lite;
  dense.n_dense_layers = dense.n_layers;
  CHECK(ValidateLayout(dense, {1, 5, 0}).ok());
}

}  // namespace
}  // namespace hadal
