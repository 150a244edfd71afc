#include "worker/model/weights.h"

#include "worker/model/weight_reader.h"

namespace hadal {
namespace {

// Walks the model in the order of its layers; the same walk loads and counts.
class WeightWalk {
 public:
  WeightWalk(const ModelConfig& config, const Layout& layout, const Range& shared,
             WeightReader* reader)
      : config_(config),
        reader_(*reader),
        heads_(SplitRange(config.n_heads, layout.tensor_parallel, layout.tp_rank())),
        experts_(SplitRange(config.n_routed_experts, layout.world(), layout.rank)),
        shared_(shared),
        layout_(layout) {}

  ModelWeights Walk() {
    ModelWeights weights;
    weights.vocab = Split(config_.vocab_size);
    weights.embedding_dtype = config_.dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
    weights.embedding = reader_.Table("model.embed_tokens.weight", weights.vocab, config_.dim);
    for (int64_t l = 0; l < config_.n_layers; ++l) weights.layers.push_back(Layer(l));
    weights.final_norm = reader_.Floats("model.norm.weight", config_.dim);
    weights.head = reader_.Pack({{{"lm_head", weights.vocab, {0, config_.dim}}}});
    weights.bytes = reader_.bytes();
    return weights;
  }

 private:
  Range Split(int64_t n) const { return SplitRange(n, layout_.tensor_parallel, layout_.tp_rank()); }

  LayerWeights Layer(int64_t index) {
    const std::string prefix = fmt::format("model.layers.{}.", index);
    LayerWeights layer;
    layer.attn_norm = reader_.Floats(prefix + "input_layernorm.weight", config_.dim);
    layer.attention = Attention(prefix + "self_attn.");
    layer.ffn_norm = reader_.Floats(prefix + "post_attention_layernorm.weight", config_.dim);
    layer.is_moe = config_.is_moe_layer(index);
    if (layer.is_moe) {
      layer.moe = Moe(prefix + "mlp.");
    } else {
      layer.dense = Mlp(prefix + "mlp.", Split(config_.inter_dim));
    }
    return layer;
  }

  AttentionWeights Attention(const std::string& prefix) {
    AttentionWeights w;
    const Range input{0, config_.dim};
    const Range q_rows{heads_.begin * config_.qk_head_dim(), heads_.end * config_.qk_head_dim()};
    const MatrixPiece kv_a{prefix + "kv_a_proj_with_mqa", {0, config_.latent_dim()}, input};
    if (config_.q_lora_rank == 0) {
      w.in = reader_.Pack({{{prefix + "q_proj", q_rows, input}, kv_a}});
    } else {
      const Range rank{0, config_.q_lora_rank};
      w.in = reader_.Pack({{{prefix + "q_a_proj", rank, input}, kv_a}});
      w.q_norm = reader_.Floats(prefix + "q_a_layernorm.weight", config_.q_lora_rank);
      w.q = reader_.Pack({{{prefix + "q_b_proj", q_rows, rank}}});
    }
    w.kv_norm = reader_.Floats(prefix + "kv_a_layernorm.weight", config_.kv_lora_rank);
    const Range latent{0, config_.kv_lora_rank};
    const int64_t nope = config_.qk_nope_head_dim;
    const int64_t width = nope + config_.v_head_dim;
    std::vector<MatrixPieces> uk, uk_t, uv;
    for (int64_t h = heads_.begin; h < heads_.end; ++h) {
      const Range keys{h * width, h * width + nope};
      const Range values{keys.end, (h + 1) * width};
      uk.push_back({{prefix + "kv_b_proj", keys, latent}});
      uk_t.push_back({{prefix + "kv_b_proj", keys, latent, /*transposed=*/true}});
      uv.push_back({{prefix + "kv_b_proj", values, latent}});
    }
    w.uk = reader_.Pack(uk, WeightUse::kHeads);
    w.uk_t = reader_.Pack(uk_t, WeightUse::kHeads);
    w.uv = reader_.Pack(uv, WeightUse::kHeads);
    w.o = reader_.Pack({{{prefix + "o_proj",
                          {0, config_.dim},
                          {heads_.begin * config_.v_head_dim, heads_.end * config_.v_head_dim}}}});
    return w;
  }

  MatrixPieces GateUp(const std::string& prefix, Range width) const {
    const Range dim{0, config_.dim};
    return {{prefix + "gate_proj", width, dim}, {prefix + "up_proj", width, dim}};
  }

  MatrixPieces Down(const std::string& prefix, Range width) const {
    return {{prefix + "down_proj", {0, config_.dim}, width}};
  }

  MlpWeights Mlp(const std::string& prefix, Range width) {
    MlpWeights mlp;
    mlp.width = width.size();
    mlp.w13 = reader_.Pack({GateUp(prefix, width)});
    mlp.w2 = reader_.Pack({Down(prefix, width)});
    return mlp;
  }

  MoeWeights Moe(const std::string& prefix) {
    MoeWeights moe;
    moe.gate = reader_.Floats(prefix + "gate.weight", config_.n_routed_experts * config_.dim);
    if (config_.has_gate_bias()) {
      moe.bias = reader_.Floats(prefix + "gate.e_score_correction_bias", config_.n_routed_experts);
    }
    std::vector<MatrixPieces> w13, w2;
    for (int64_t e = experts_.begin; e < experts_.end; ++e) {
      const std::string expert = fmt::format("{}experts.{}.", prefix, e);
      w13.push_back(GateUp(expert, {0, config_.moe_inter_dim}));
      w2.push_back(Down(expert, {0, config_.moe_inter_dim}));
    }
    moe.w13 = reader_.Pack(w13);
    moe.w2 = reader_.Pack(w2);
    if (shared_.size() > 0) moe.shared = Mlp(prefix + "shared_experts.", shared_);
    return moe;
  }

  const ModelConfig& config_;
  WeightReader& reader_;
  const Range heads_;
  const Range experts_;
  const Range shared_;
  const Layout layout_;
};

}  // namespace

StatusOr<ModelWeights> LoadWeights(const ModelConfig& config, const Layout& layout,
                                   const Range& shared, const Checkpoint& checkpoint,
                                   Backend* backend,
                                   const std::function<void(int64_t, int64_t)>& progress) {
  WeightReader reader(config, &checkpoint, backend, progress,
                      PlanWeightBytes(config, layout, shared, *backend));
  ModelWeights weights = WeightWalk(config, layout, shared, &reader).Walk();
  HADAL_RETURN_IF_ERROR(reader.status());
  return weights;
}

int64_t PlanWeightBytes(const ModelConfig& config, const Layout& layout, const Range& shared,
                        const Backend& backend) {
  WeightReader reader(config, backend);
  return WeightWalk(config, layout, shared, &reader).Walk().bytes;
}

}  // namespace hadal
