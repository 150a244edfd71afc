#include "worker/model/transformer.h"

#include <algorithm>
#include <utility>

#include "common/rounding.h"

namespace hadal {
namespace {

constexpr int64_t kSumRows = 64;

}  // namespace

StatusOr<std::unique_ptr<Model>> Model::Load(const ModelConfig& config, const Layout& layout,
                                             const Checkpoint& checkpoint, Backend* backend,
                                             CommGroup comm, const ModelOptions& options,
                                             const Progress& progress) {
  HADAL_ASSIGN_OR_RETURN(ModelWeights weights,
                         LoadWeights(config, layout, SharedWidth(config, layout, options),
                                     checkpoint, backend, progress));
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
      inputs_(backend, layout, options, config.max_seq_len),
      cache_(backend->Allocate(config.n_layers * layer_cache_bytes_)),
      expanded_(config, layout, backend, options),
      experts_(config, backend, comm_, ExchangeRows(config, layout, options)),
      fixed_experts_(config, layout, backend, comm_, options) {
  MakeWorkspace(config, layout, options, backend->activation_dtype(), backend, &space_);
  backend_->Reserve(StepOpLimits(config, layout, options));
  const std::vector<float> table = RopeTable(config);
  backend_->CopyToDevice(space_.cos_sin->data, table.data(),
                         static_cast<int64_t>(table.size() * sizeof(float)));
  const std::vector<int32_t> local = ExpertPlacement(config.n_routed_experts, layout.world())
                                         .LocalIndices(layout.rank);
  backend_->CopyToDevice(space_.local_index->data, local.data(),
                         static_cast<int64_t>(local.size() * sizeof(int32_t)));
  for (int r = 0; r < layout.tensor_parallel; ++r) {
    vocab_pieces_.push_back(SplitRange(config.vocab_size, layout.tensor_parallel, r));
  }
}

void Transformer::SumOverGroup(void* data, DType dtype) {
  if (layout_.tensor_parallel == 1) return;
  // A device starts a sum of a size that it knows faster, so sizes of prompts are few.
  const bool padded = backend_->replays() && inputs_.replay_key() == 0;
  const int64_t rows =
      padded ? std::min<int64_t>(RoundUp(tokens_, kSumRows), StepInputs::PaddedTokens(options_)) : tokens_;
  comm_.act_tensor->AllReduceSum(data, rows * config_.dim, dtype);
}

void Transformer::Prepare(const Batch& batch) {
  HADAL_CHECK(static_cast<int>(batch.tokens.size()) <= options_.max_step_tokens &&
                  static_cast<int>(batch.rows.size()) <= options_.max_rows,
              "{} tokens in {} rows", batch.tokens.size(), batch.rows.size());
  HADAL_CHECK(batch.step.tokens <= options_.max_step_tokens);
  inputs_.Upload(batch);
  expanded_.Choose(batch);
  tokens_ = inputs_.tokens();
  // By position, not by place in the batch: a token's sum then has the same order in every batch.
  served_.clear();
  for (int32_t pos : batch.positions) {
    served_.push_back(pos % layout_.tensor_parallel == layout_.tp_rank());
  }
}

void Transformer::Forward() {
  // Two sums a layer, but no sum before the first one: the last lies in space_.residual, where Logits()
  // finds it. It must not be told by a member: of a step that is replayed none is set.
  residual_ = space_.spare_residual->data;
  spare_ = space_.residual->data;
  has_delta_ = false;
  if (tokens_ > 0) {
    backend_->Embed({.ids = inputs_.ids(),
                     .last_tokens = last_tokens(),
                     .tokens = tokens_,
                     .table = weights_.embedding->data,
                     .table_dtype = weights_.embedding_dtype,
                     .vocab_begin = static_cast<int32_t>(weights_.vocab.begin),
                     .vocab_end = static_cast<int32_t>(weights_.vocab.end),
                     .dim = config_.dim,
                     .float_out = true,
                     .out = residual_});
    SumOverGroup(residual_, DType::kF32);
  }
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    const LayerWeights& layer = weights_.layers[l];
    // A group without tokens still computes its experts' share of the others' tokens.
    if (tokens_ > 0) Attention(l);
    if (tokens_ > 0 || layer.is_moe) FeedForward(layer);
  }
}

RmsNormParams Transformer::AddAndNorm(const DeviceBuffer& weight) {
  if (has_delta_) std::swap(residual_, spare_);
  return {.residual = residual_,
          .from = has_delta_ ? spare_ : nullptr,
          .float_residual = true,
          .delta = has_delta_ ? space_.delta->data : nullptr,
          .weight = weight.as<float>(),
          .out = space_.normed->data,
          .tokens = tokens_,
          .dim = config_.dim,
          .x_stride = config_.dim,
          .out_stride = config_.dim,
          .eps = config_.norm_eps};
}

void Transformer::Attention(size_t layer) {
  const AttentionWeights& w = weights_.layers[layer].attention;
  void* const cache = cache_->as<uint8_t>() + layer * layer_cache_bytes_;
  const Queries q = Project(w, AddAndNorm(*weights_.layers[layer].attn_norm));
  const MlaInputParams input = CacheInput(w, q, cache);
  const MatMulParams output{.x = space_.attn_out->data, .x_stride = heads_ * config_.v_head_dim,
                            .w = w.o.get(), .y = space_.delta->data, .y_stride = config_.dim,
                            .m = tokens_};
  if (inputs_.decode_tokens() == 0) {
    backend_->MlaInput(input);
    backend_->MlaPrefillAndMatMul(PrefillOf(layer, q, cache), output);
  } else {
    AttendDecode(w, q, input);
    if (inputs_.prefill().num_rows > 0) backend_->MlaPrefill(PrefillOf(layer, q, cache));
    backend_->MatMul(output);
  }
  SumOverGroup(space_.delta->data, backend_->activation_dtype());
  has_delta_ = true;
}

// The residual's norm -> attn_in, whose rows are [q or q_a] ; c ; k_pe, and the queries.
Transformer::Queries Transformer::Project(const AttentionWeights& w, const RmsNormParams& norm) {
  backend_->NormMatMul(norm, {.x = norm.out, .x_stride = config_.dim, .w = w.in.get(),
                              .y = space_.attn_in->data, .y_stride = w.in->n, .m = tokens_});
  if (config_.q_lora_rank == 0) return {space_.attn_in->data, w.in->n};
  const int64_t q_width = heads_ * config_.qk_head_dim();
  backend_->NormMatMul({.residual = space_.attn_in->data,
                        .weight = w.q_norm->as<float>(),
                        .out = space_.q_normed->data,
                        .tokens = tokens_,
                        .dim = config_.q_lora_rank,
                        .x_stride = w.in->n,
                        .out_stride = config_.q_lora_rank,
                        .eps = config_.latent_norm_eps},
                       {.x = space_.q_normed->data, .x_stride = config_.q_lora_rank, .w = w.q.get(),
                        .y = space_.q->data, .y_stride = q_width, .m = tokens_});
  return {space_.q->data, q_width};
}

MlaInputParams Transformer::CacheInput(const AttentionWeights& w, const Queries& q, void* cache) {
  const DType act = backend_->activation_dtype();
  const int64_t latent_at = w.in->n - config_.latent_dim();
  return {.q_rope = Offset(q.data, config_.qk_nope_head_dim, act),
          .q_rope_stride = q.stride,
          .q_rope_head_stride = config_.qk_head_dim(),
          .heads = heads_,
          .kv_a = Offset(space_.attn_in->data, latent_at, act),
          .kv_a_stride = w.in->n,
          .weight = w.kv_norm->as<float>(),
          .eps = config_.latent_norm_eps,
          .latent_rank = static_cast<int>(config_.kv_lora_rank),
          .rope_dim = static_cast<int>(config_.qk_rope_head_dim),
          .positions = inputs_.positions(),
          .cos_sin = space_.cos_sin->as<float>(),
          .cache_rows = inputs_.cache_rows(),
          .cache = cache,
          .cache_dtype = cache_dtype_,
          .tokens = tokens_};
}

// Prompt tokens, in the up-projected form.
MlaPrefillParams Transformer::PrefillOf(size_t layer, const Queries& q, const void* cache) {
  const AttentionWeights& w = weights_.layers[layer].attention;
  return {.q = q.data,
          .q_stride = q.stride,
          .out = space_.attn_out->data,
          .rows = inputs_.prefill(),
          .cache = cache,
          .cache_dtype = cache_dtype_,
          .w_uk = w.uk.get(),
          .w_uv = w.uv.get(),
          .heads = heads_,
          .latent_rank = static_cast<int>(config_.kv_lora_rank),
          .nope_dim = static_cast<int>(config_.qk_nope_head_dim),
          .rope_dim = static_cast<int>(config_.qk_rope_head_dim),
          .v_dim = static_cast<int>(config_.v_head_dim),
          .scale = softmax_scale_,
          .expanded = expanded_.Layer(static_cast<int64_t>(layer))};
}

// Latent rows of all tokens to the cache, then generated tokens in the absorbed form.
void Transformer::AttendDecode(const AttentionWeights& w, const Queries& q,
                               const MlaInputParams& input) {
  const auto latent = static_cast<int>(config_.kv_lora_rank);
  const auto v_dim = static_cast<int>(config_.v_head_dim);
  const int tokens = inputs_.decode_tokens();
  backend_->MlaInputAndAbsorb(
      input, {.x = q.data, .x_stride = q.stride, .x_head_stride = config_.qk_head_dim(),
              .w = w.uk_t.get(), .y = space_.q_latent->data,
              .y_stride = int64_t{heads_} * latent, .y_head_stride = latent,
              .m = tokens, .heads = heads_});
  backend_->MlaDecode({.q_latent = space_.q_latent->data,
                       .q_rope = input.q_rope,
                       .q_rope_stride = q.stride,
                       .q_rope_head_stride = config_.qk_head_dim(),
                       .out = space_.o_latent->data,
                       .rows = inputs_.decode(),
                       .cache = input.cache,
                       .cache_dtype = cache_dtype_,
                       .heads = heads_,
                       .latent_rank = latent,
                       .rope_dim = static_cast<int>(config_.qk_rope_head_dim),
                       .scale = softmax_scale_});
  backend_->HeadMatMul({.x = space_.o_latent->data, .x_stride = int64_t{heads_} * latent,
                        .x_head_stride = latent, .w = w.uv.get(), .y = space_.attn_out->data,
                        .y_stride = int64_t{heads_} * v_dim, .y_head_stride = v_dim,
                        .m = tokens, .heads = heads_});
}

const void* Transformer::LogitInputs(int first, int count) {
  const DType act = backend_->activation_dtype();
  void* hidden = Offset(space_.residual->data, first * config_.dim, DType::kF32);
  const void* delta = Offset(space_.delta->data, first * config_.dim, act);
  if (!inputs_.all_logits()) {
    auto gather = [&](const void* rows, DType dtype, const Workspace::Buffer& to) {
      backend_->Embed({.ids = inputs_.logit_tokens() + first, .tokens = count, .table = rows,
                       .table_dtype = dtype, .vocab_begin = 0, .vocab_end = tokens_,
                       .dim = config_.dim, .float_out = dtype == DType::kF32, .out = to->data});
    };
    gather(space_.residual->data, DType::kF32, space_.logit_hidden);
    gather(space_.delta->data, act, space_.logit_delta);
    hidden = space_.logit_hidden->data;
    delta = space_.logit_delta->data;
  }
  backend_->RmsNorm({.residual = hidden, .float_residual = true, .delta = delta,
                     .weight = weights_.final_norm->as<float>(), .out = space_.logit_normed->data,
                     .tokens = count, .dim = config_.dim, .x_stride = config_.dim,
                     .out_stride = config_.dim, .eps = config_.norm_eps});
  return space_.logit_normed->data;
}

const float* Transformer::Logits(int first, int count) {
  HADAL_CHECK(count <= options_.max_step_logits && first + count <= inputs_.logits());
  auto* logits = space_.logits->as<float>();
  if (count == 0) return logits;
  const int64_t own = weights_.vocab.size();
  const bool whole = layout_.tensor_parallel == 1;
  backend_->MatMul({.x = LogitInputs(first, count), .x_stride = config_.dim,
                    .w = weights_.head.get(),
                    .y = whole ? logits : space_.own_logits->as<float>(), .y_stride = own,
                    .float_out = true, .m = count});
  if (whole) return logits;
  piece_bytes_.clear();
  for (const Range& piece : vocab_pieces_) piece_bytes_.push_back(piece.size() * count * 4);
  comm_.act_tensor->AllGatherV(space_.own_logits->data, space_.pieces->data, piece_bytes_);
  const auto* from = space_.pieces->as<float>();
  for (const Range& piece : vocab_pieces_) {
    backend_->CopyRows({.from = from, .from_stride = piece.size() * 4,
                        .to = logits + piece.begin, .to_stride = config_.vocab_size * 4,
                        .rows = count, .bytes = piece.size() * 4});
    from += piece.size() * count;
  }
  return logits;
}

}  // namespace hadal
