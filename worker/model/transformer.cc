#include "worker/model/transformer.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace hadal {
namespace {

// The element `count` activations after `base`.
void* Offset(void* base, int64_t count, DType dtype) {
  return static_cast<uint8_t*>(base) + count * DTypeSize(dtype);
}

}  // namespace

StatusOr<std::unique_ptr<Model>> Model::Load(const ModelConfig& config, const Layout& layout,
                                             const Checkpoint& checkpoint, Backend* backend,
                                             CommGroup comm, const ModelOptions& options,
                                             const Progress& progress) {
  HADAL_ASSIGN_OR_RETURN(ModelWeights weights,
                         LoadWeights(config, layout, checkpoint, backend, progress));
  return std::unique_ptr<Model>(std::make_unique<Transformer>(
      config, layout, backend, std::move(comm), options, std::move(weights)));
}

Transformer::Transformer(const ModelConfig& config, const Layout& layout, Backend* backend,
                         CommGroup comm, const ModelOptions& options, ModelWeights weights)
    : config_(config),
      layout_(layout),
      backend_(backend),
      comm_(std::move(comm)),
      options_(options),
      weights_(std::move(weights)),
      heads_(static_cast<int>(config.n_heads / layout.tensor_parallel)),
      cache_dtype_(CacheDType(config)),
      layer_cache_bytes_(LayerCacheBytes(config, options.kv_blocks)),
      softmax_scale_(config.SoftmaxScale()),
      cache_(backend->Allocate(config.n_layers * layer_cache_bytes_)),
      experts_(config, backend, comm_.world, ExchangeRows(config, layout, options)) {
  MakeWorkspace(config, layout, options, backend->activation_dtype(), backend, &space_);
  const std::vector<float> table = RopeTable(config);
  backend_->CopyToDevice(space_.cos_sin->data, table.data(),
                         static_cast<int64_t>(table.size() * sizeof(float)));
  for (int r = 0; r < layout.tensor_parallel; ++r) {
    vocab_pieces_.push_back(SplitRange(config.vocab_size, layout.tensor_parallel, r));
  }
}

void Transformer::SumOverGroup(void* data, int64_t count) {
  HADAL_CHECK(backend_->activation_dtype() == DType::kF32);
  comm_.tensor->AllReduceSum(static_cast<float*>(data), count);
}

void Transformer::StartStep(const Batch& batch) {
  tokens_ = static_cast<int>(batch.tokens.size());
  HADAL_CHECK(tokens_ <= options_.max_step_tokens, "{} tokens", tokens_);
  decode_rows_.clear();
  prefill_rows_.clear();
  cache_rows_.clear();
  decode_tokens_ = 0;
  for (const BatchRow& row : batch.rows) {
    const bool decode = row.kind == RowKind::kDecode;
    (decode ? decode_rows_ : prefill_rows_)
        .push_back({row.first_token, row.num_tokens, row.start_pos, row.blocks});
    if (decode) decode_tokens_ += row.num_tokens;
    for (int32_t pos = row.start_pos; pos < row.start_pos + row.num_tokens; ++pos) {
      cache_rows_.push_back(int64_t{row.blocks[pos / kBlockSize]} * kBlockSize + pos % kBlockSize);
    }
  }
  logit_tokens_ = batch.logit_tokens;
  // By position, not by place in the batch: a token's sum then has the same order in every batch.
  served_.clear();
  for (int32_t pos : batch.positions) {
    served_.push_back(pos % layout_.tensor_parallel == layout_.tp_rank());
  }
  backend_->CopyToDevice(space_.token_ids->data, batch.tokens.data(), tokens_ * 4);
  backend_->CopyToDevice(space_.positions->data, batch.positions.data(), tokens_ * 4);
  backend_->CopyToDevice(space_.cache_rows->data, cache_rows_.data(), tokens_ * 8);
}

void Transformer::Forward(const Batch& batch) {
  StartStep(batch);
  if (tokens_ > 0) {
    backend_->Embed({.ids = space_.token_ids->as<int32_t>(),
                     .tokens = tokens_,
                     .table = weights_.embedding->data,
                     .table_dtype = weights_.embedding_dtype,
                     .vocab_begin = static_cast<int32_t>(weights_.vocab.begin),
                     .vocab_end = static_cast<int32_t>(weights_.vocab.end),
                     .dim = config_.dim,
                     .out = space_.residual->data});
    SumOverGroup(space_.residual->data, tokens_ * config_.dim);
  }
  has_delta_ = false;
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    const LayerWeights& layer = weights_.layers[l];
    // A group without tokens still computes its experts' share of the others' tokens.
    if (tokens_ > 0) {
      Attention(layer, static_cast<uint8_t*>(cache_->data) + l * layer_cache_bytes_);
      AddAndNorm(*layer.ffn_norm);
    }
    if (tokens_ > 0 || layer.is_moe) FeedForward(layer);
  }
}

void Transformer::AddAndNorm(const DeviceBuffer& weight) {
  backend_->RmsNorm({.residual = space_.residual->data,
                     .delta = has_delta_ ? space_.delta->data : nullptr,
                     .weight = weight.as<float>(),
                     .out = space_.normed->data,
                     .tokens = tokens_,
                     .dim = config_.dim,
                     .x_stride = config_.dim,
                     .out_stride = config_.dim,
                     .eps = config_.norm_eps});
}

void Transformer::Attention(const LayerWeights& layer, void* cache) {
  const AttentionWeights& w = layer.attention;
  AddAndNorm(*layer.attn_norm);
  Project(w);
  const int64_t latent_stride = w.a->n;
  const auto* positions = space_.positions->as<int32_t>();
  const auto* cos_sin = space_.cos_sin->as<float>();
  const DType act = backend_->activation_dtype();
  backend_->Rope({.x = Offset(space_.q->data, config_.qk_nope_head_dim, act),
                  .x_stride = heads_ * config_.qk_head_dim(),
                  .head_stride = config_.qk_head_dim(),
                  .heads = heads_,
                  .rope_dim = static_cast<int>(config_.qk_rope_head_dim),
                  .positions = positions,
                  .cos_sin = cos_sin,
                  .tokens = tokens_});
  backend_->StoreLatent({.kv_a = Offset(space_.latent_in->data, config_.q_lora_rank, act),
                         .kv_a_stride = latent_stride,
                         .weight = w.kv_norm->as<float>(),
                         .eps = config_.latent_norm_eps,
                         .latent_rank = static_cast<int>(config_.kv_lora_rank),
                         .rope_dim = static_cast<int>(config_.qk_rope_head_dim),
                         .positions = positions,
                         .cos_sin = cos_sin,
                         .cache_rows = space_.cache_rows->as<int64_t>(),
                         .cache = cache,
                         .cache_dtype = cache_dtype_,
                         .tokens = tokens_});
  Attend(w, cache);
  backend_->MatMul({.x = space_.attn_out->data, .x_stride = heads_ * config_.v_head_dim,
                    .w = w.o.get(), .y = space_.delta->data, .y_stride = config_.dim, .m = tokens_});
  SumOverGroup(space_.delta->data, tokens_ * config_.dim);
  has_delta_ = true;
}

// normed -> q and latent_in, whose rows are [q_a ;] c ; k_pe.
void Transformer::Project(const AttentionWeights& w) {
  const int64_t q_width = heads_ * config_.qk_head_dim();
  backend_->MatMul({.x = space_.normed->data, .x_stride = config_.dim, .w = w.a.get(),
                    .y = space_.latent_in->data, .y_stride = w.a->n, .m = tokens_});
  const void* q_in = space_.normed->data;
  int64_t q_stride = config_.dim;
  if (config_.q_lora_rank > 0) {
    backend_->RmsNorm({.residual = space_.latent_in->data,
                       .weight = w.q_norm->as<float>(),
                       .out = space_.q_normed->data,
                       .tokens = tokens_,
                       .dim = config_.q_lora_rank,
                       .x_stride = w.a->n,
                       .out_stride = config_.q_lora_rank,
                       .eps = config_.latent_norm_eps});
    q_in = space_.q_normed->data;
    q_stride = config_.q_lora_rank;
  }
  backend_->MatMul({.x = q_in, .x_stride = q_stride, .w = w.q.get(), .y = space_.q->data,
                    .y_stride = q_width, .m = tokens_});
}

// Generated tokens in the absorbed form, prompt tokens in the up-projected form.
void Transformer::Attend(const AttentionWeights& w, const void* cache) {
  const auto latent = static_cast<int>(config_.kv_lora_rank);
  const auto nope = static_cast<int>(config_.qk_nope_head_dim);
  const auto rope = static_cast<int>(config_.qk_rope_head_dim);
  const auto v_dim = static_cast<int>(config_.v_head_dim);
  const int64_t q_stride = heads_ * config_.qk_head_dim();
  if (decode_tokens_ > 0) {
    backend_->HeadMatMul({.x = space_.q->data, .x_stride = q_stride,
                          .x_head_stride = config_.qk_head_dim(), .w = w.uk_t.view.data(),
                          .y = space_.q_latent->data, .y_stride = int64_t{heads_} * latent,
                          .y_head_stride = latent, .m = decode_tokens_, .heads = heads_});
    backend_->MlaDecode({.q_latent = space_.q_latent->data,
                         .q_rope = Offset(space_.q->data, nope, backend_->activation_dtype()),
                         .q_rope_stride = q_stride,
                         .q_rope_head_stride = config_.qk_head_dim(),
                         .out = space_.o_latent->data,
                         .rows = decode_rows_.data(),
                         .num_rows = static_cast<int>(decode_rows_.size()),
                         .cache = cache,
                         .cache_dtype = cache_dtype_,
                         .heads = heads_,
                         .latent_rank = latent,
                         .rope_dim = rope,
                         .scale = softmax_scale_});
    backend_->HeadMatMul({.x = space_.o_latent->data, .x_stride = int64_t{heads_} * latent,
                          .x_head_stride = latent, .w = w.uv.view.data(),
                          .y = space_.attn_out->data, .y_stride = int64_t{heads_} * v_dim,
                          .y_head_stride = v_dim, .m = decode_tokens_, .heads = heads_});
  }
  if (prefill_rows_.empty()) return;
  backend_->MlaPrefill({.q = space_.q->data,
                        .out = space_.attn_out->data,
                        .rows = prefill_rows_.data(),
                        .num_rows = static_cast<int>(prefill_rows_.size()),
                        .cache = cache,
                        .cache_dtype = cache_dtype_,
                        .w_uk = w.uk.view.data(),
                        .w_uv = w.uv.view.data(),
                        .heads = heads_,
                        .latent_rank = latent,
                        .nope_dim = nope,
                        .rope_dim = rope,
                        .v_dim = v_dim,
                        .scale = softmax_scale_});
}

void Transformer::FeedForward(const LayerWeights& layer) {
  if (layer.is_moe) {
    Moe(layer.moe);
  } else {
    DenseMlp(layer.dense, space_.delta->data);
  }
  SumOverGroup(space_.delta->data, tokens_ * config_.dim);
}

void Transformer::DenseMlp(const MlpWeights& w, void* out) {
  backend_->MatMul({.x = space_.normed->data, .x_stride = config_.dim, .w = w.w13.get(),
                    .y = space_.gate_up->data, .y_stride = 2 * w.width, .m = tokens_});
  backend_->SiluMul({.gate_up = space_.gate_up->data, .out = space_.mlp_act->data, .rows = tokens_,
                     .width = w.width});
  backend_->MatMul({.x = space_.mlp_act->data, .x_stride = w.width, .w = w.w2.get(), .y = out,
                    .y_stride = config_.dim, .m = tokens_});
}

// delta = this rank's part of shared and routed experts; the sum over the group completes both.
void Transformer::Moe(const MoeWeights& w) {
  const bool shared = w.shared.width > 0 && tokens_ > 0;
  if (shared) DenseMlp(w.shared, space_.delta->data);
  Route(w);
  const ExpertExchange::Tokens routed{.x = space_.normed->data,
                                      .ids = expert_ids_.data(),
                                      .weights = expert_weights_.data(),
                                      .count = tokens_,
                                      .out = space_.delta->data,
                                      .accumulate = shared};
  if (layout_.data_parallel == 1) {
    experts_.RunLocal(w, routed, space_.row_out->data);
  } else {
    experts_.RunExchange(w, routed, served_.data());
  }
}

void Transformer::Route(const MoeWeights& w) {
  expert_ids_.resize(static_cast<size_t>(tokens_) * config_.n_activated_experts);
  expert_weights_.resize(expert_ids_.size());
  if (tokens_ == 0) return;
  const bool grouped = config_.topk_method != TopkMethod::kGreedy;
  backend_->Route({.x = space_.normed->data,
                   .gate = w.gate->as<float>(),
                   .bias = w.bias == nullptr ? nullptr : w.bias->as<float>(),
                   .tokens = tokens_,
                   .dim = config_.dim,
                   .experts = static_cast<int>(config_.n_routed_experts),
                   .top_k = static_cast<int>(config_.n_activated_experts),
                   .groups = grouped ? static_cast<int>(config_.n_expert_groups) : 1,
                   .limited_groups = grouped ? static_cast<int>(config_.n_limited_groups) : 1,
                   .score = config_.score_func == ScoreFunc::kSoftmax ? RouterScore::kSoftmax
                                                                      : RouterScore::kSigmoid,
                   .group_score = config_.topk_method == TopkMethod::kNoAuxTc
                                      ? GroupScore::kTopTwoSum
                                      : GroupScore::kMax,
                   .normalise = config_.norm_topk_prob,
                   .route_scale = config_.route_scale,
                   .ids = expert_ids_.data(),
                   .weights = expert_weights_.data()});
}

void Transformer::Logits(int first, int count, float* out) {
  HADAL_CHECK(count <= options_.max_step_logits &&
              first + count <= static_cast<int>(logit_tokens_.size()));
  if (count == 0) return;
  auto gather = [&](const Workspace::Buffer& rows, const Workspace::Buffer& to) {
    backend_->Embed({.ids = logit_tokens_.data() + first, .tokens = count, .table = rows->data,
                     .table_dtype = backend_->activation_dtype(), .vocab_begin = 0,
                     .vocab_end = tokens_, .dim = config_.dim, .out = to->data});
  };
  gather(space_.residual, space_.logit_hidden);
  gather(space_.delta, space_.logit_delta);
  backend_->RmsNorm({.residual = space_.logit_hidden->data, .delta = space_.logit_delta->data,
                     .weight = weights_.final_norm->as<float>(), .out = space_.logit_normed->data,
                     .tokens = count, .dim = config_.dim, .x_stride = config_.dim,
                     .out_stride = config_.dim, .eps = config_.norm_eps});
  const int64_t own = weights_.vocab.size();
  backend_->MatMul({.x = space_.logit_normed->data, .x_stride = config_.dim,
                    .w = weights_.head.get(), .y = space_.logits->data, .y_stride = own, .m = count});
  const int64_t vocab = config_.vocab_size;
  if (layout_.tensor_parallel == 1) {
    backend_->CopyToHost(out, space_.logits->data, count * vocab * 4);
    return;
  }
  own_logits_.resize(count * own);
  backend_->CopyToHost(own_logits_.data(), space_.logits->data, count * own * 4);
  all_logits_.resize(count * vocab);
  piece_bytes_.clear();
  for (const Range& piece : vocab_pieces_) piece_bytes_.push_back(piece.size() * count * 4);
  comm_.tensor->AllGatherV(own_logits_.data(), all_logits_.data(), piece_bytes_);
  const float* from = all_logits_.data();
  for (const Range& piece : vocab_pieces_) {
    for (int i = 0; i < count; ++i, from += piece.size()) {
      std::memcpy(out + i * vocab + piece.begin, from, piece.size() * 4);
    }
  }
}

}  // namespace hadal
