#include "common/tensor_inventory.h"

#include "common/check.h"
#include "common/rounding.h"

namespace hadal {
namespace {

// Appends the tensors of one model in file order.
class Inventory {
 public:
  explicit Inventory(const ModelConfig& config) : config_(config) {}

  // A large matrix: of the model's dtype, in FP8 followed by its scales.
  void Matrix(const std::string& name, int64_t rows, int64_t columns, Split split,
              int64_t expert = -1) {
    const bool fp8 = config_.dtype == DType::kF8E4M3;
    ExpectedTensor weight{.name = name + ".weight",
                          .shape = {rows, columns},
                          .dtypes = {config_.dtype},
                          .split = split,
                          .expert = expert};
    if (fp8) weight.scale_name = name + ".weight_scale_inv";
    out_.push_back(std::move(weight));
    if (!fp8) return;
    const int64_t block = config_.scale_block;
    out_.push_back({.name = name + ".weight_scale_inv",
                    .shape = {CeilDiv(rows, block), CeilDiv(columns, block)},
                    .dtypes = {DType::kF32},
                    .split = split,
                    .expert = expert,
                    .scaled_shape = {rows, columns}});
  }

  // Embedding and head: never FP8.
  void Table(const std::string& name, int64_t rows, int64_t columns) {
    const DType dtype = config_.dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
    out_.push_back(
        {.name = name, .shape = {rows, columns}, .dtypes = {dtype}, .split = Split::kRows});
  }

  // Norms and the gate: small, replicated, in either precision unless the model is F32.
  void Small(const std::string& name, std::vector<int64_t> shape) {
    std::vector<DType> dtypes = {DType::kF32};
    if (config_.dtype != DType::kF32) dtypes.insert(dtypes.begin(), DType::kBF16);
    out_.push_back({.name = name, .shape = std::move(shape), .dtypes = std::move(dtypes)});
  }

  void Attention(const std::string& layer) {
    const std::string attention = layer + "self_attn.";
    const int64_t q_rows = config_.n_heads * config_.qk_head_dim();
    const int64_t latent = config_.kv_lora_rank;
    if (config_.q_lora_rank == 0) {
      Matrix(attention + "q_proj", q_rows, config_.dim, Split::kHeads);
    } else {
      Matrix(attention + "q_a_proj", config_.q_lora_rank, config_.dim, Split::kReplicate);
      Small(attention + "q_a_layernorm.weight", {config_.q_lora_rank});
      Matrix(attention + "q_b_proj", q_rows, config_.q_lora_rank, Split::kHeads);
    }
    Matrix(attention + "kv_a_proj_with_mqa", config_.latent_dim(), config_.dim, Split::kReplicate);
    Small(attention + "kv_a_layernorm.weight", {latent});
    Matrix(attention + "kv_b_proj",
           config_.n_heads * (config_.qk_nope_head_dim + config_.v_head_dim), latent,
           Split::kHeads);
    Matrix(attention + "o_proj", config_.dim, config_.n_heads * config_.v_head_dim,
           Split::kHeadColumns);
  }

  // REQUIRES for routed experts: both splits are kExpert.
  void Mlp(const std::string& prefix, int64_t inter, Split up, Split down, int64_t expert = -1) {
    Matrix(prefix + "gate_proj", inter, config_.dim, up, expert);
    Matrix(prefix + "up_proj", inter, config_.dim, up, expert);
    Matrix(prefix + "down_proj", config_.dim, inter, down, expert);
  }

  void Experts(const std::string& layer) {
    const std::string mlp = layer + "mlp.";
    Small(mlp + "gate.weight", {config_.n_routed_experts, config_.dim});
    if (config_.has_gate_bias()) {
      Small(mlp + "gate.e_score_correction_bias", {config_.n_routed_experts});
    }
    for (int64_t e = 0; e < config_.n_routed_experts; ++e) {
      Mlp(fmt::format("{}experts.{}.", mlp, e), config_.moe_inter_dim, Split::kExpert,
          Split::kExpert, e);
    }
    if (config_.n_shared_experts > 0) {
      Mlp(mlp + "shared_experts.", config_.shared_inter_dim(), Split::kRows, Split::kColumns);
    }
  }

  std::vector<ExpectedTensor> Build() && {
    Table("model.embed_tokens.weight", config_.vocab_size, config_.dim);
    for (int64_t l = 0; l < config_.n_layers; ++l) {
      const std::string layer = fmt::format("model.layers.{}.", l);
      Small(layer + "input_layernorm.weight", {config_.dim});
      Attention(layer);
      Small(layer + "post_attention_layernorm.weight", {config_.dim});
      if (config_.is_moe_layer(l)) {
        Experts(layer);
      } else {
        Mlp(layer + "mlp.", config_.inter_dim, Split::kRows, Split::kColumns);
      }
    }
    Small("model.norm.weight", {config_.dim});
    Table("lm_head.weight", config_.vocab_size, config_.dim);
    return std::move(out_);
  }

 private:
  const ModelConfig& config_;
  std::vector<ExpectedTensor> out_;
};

// The piece of n that is made of whole heads.
Range HeadRange(const ModelConfig& config, int64_t n, const Layout& layout) {
  const int64_t width = n / config.n_heads;
  const Range heads = SplitRange(config.n_heads, layout.tensor_parallel, layout.tp_rank());
  return {heads.begin * width, heads.end * width};
}

// The scale blocks that a range touches. REQUIRES: the range is not empty.
Range BlocksOf(Range range, int64_t block) {
  return {range.begin / block, CeilDiv(range.end, block)};
}

}  // namespace

std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config) {
  return Inventory(config).Build();
}

TensorSlice SliceForRank(const ModelConfig& config, const ExpectedTensor& tensor,
                         const Layout& layout) {
  const bool scale = !tensor.scaled_shape.empty();
  const std::vector<int64_t>& shape = scale ? tensor.scaled_shape : tensor.shape;
  HADAL_CHECK(shape.size() == 1 || shape.size() == 2, "{}", tensor.name);
  const int64_t n = shape[0];
  const int64_t m = shape.size() == 2 ? shape[1] : 1;
  const int parts = layout.tensor_parallel;
  TensorSlice slice{{0, n}, {0, m}};
  switch (tensor.split) {
    case Split::kReplicate:
      break;
    case Split::kRows:
      slice.rows = SplitRange(n, parts, layout.tp_rank());
      break;
    case Split::kColumns:
      slice.columns = SplitRange(m, parts, layout.tp_rank());
      break;
    case Split::kHeads:
      slice.rows = HeadRange(config, n, layout);
      break;
    case Split::kHeadColumns:
      slice.columns = HeadRange(config, m, layout);
      break;
    case Split::kExpert: {
      const Range own = SplitRange(config.n_routed_experts, layout.world(), layout.rank);
      if (!own.Contains(tensor.expert)) slice = {{0, 0}, {0, 0}};
      break;
    }
  }
  if (!scale) return slice;
  if (slice.rows.size() == 0 || slice.columns.size() == 0) return {{0, 0}, {0, 0}};
  return {BlocksOf(slice.rows, config.scale_block), BlocksOf(slice.columns, config.scale_block)};
}

}  // namespace hadal
