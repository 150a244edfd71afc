// The second half of each layer: dense, or routed and shared experts.
#include "worker/model/transformer.h"

namespace hadal {

void Transformer::FeedForward(const LayerWeights& layer) {
  const bool over_world = layer.is_moe && options_.fixed_exchange;
  if (tokens_ > 0) {
    const RmsNormParams norm = AddAndNorm(*layer.ffn_norm);
    if (layer.is_moe && !over_world) {
      backend_->NormRoute(norm, RouteTo(layer.moe, 0, tokens_));
    } else {
      backend_->RmsNorm(norm);
    }
  }
  if (over_world) return MoeOverWorld(layer.moe);
  if (layer.is_moe) {
    Moe(layer.moe);
  } else {
    backend_->Mlp({.x = space_.normed->data, .w13 = layer.dense.w13.get(),
                   .w2 = layer.dense.w2.get(), .width = layer.dense.width,
                   .out = space_.delta->data, .tokens = tokens_});
  }
  SumOverGroup(space_.delta->data, backend_->activation_dtype());
}

// delta = this rank's part of shared and routed experts; the sum over the group completes both.
void Transformer::Moe(const MoeWeights& w) {
  const auto* ids = space_.expert_ids->as<int32_t>();
  const auto* weights = space_.expert_weights->as<float>();
  const auto* local_index = space_.local_index->as<int32_t>();
  if (layout_.data_parallel > 1) {
    experts_.Run(w, {.x = space_.normed->data, .ids = ids, .weights = weights,
                     .local_index = local_index, .served = served_.data(), .count = tokens_,
                     .out = space_.delta->data});
    return;
  }
  backend_->Moe({.x = space_.normed->data,
                 .ids = ids,
                 .weights = weights,
                 .local_index = local_index,
                 .w13 = w.w13.get(),
                 .w2 = w.w2.get(),
                 .shared = {.w13 = w.shared.w13.get(), .w2 = w.shared.w2.get(),
                            .width = w.shared.width},
                 .out = space_.delta->data,
                 .tokens = tokens_,
                 .top_k = static_cast<int>(config_.n_activated_experts),
                 .experts = static_cast<int>(config_.n_routed_experts),
                 .dim = config_.dim,
                 .width = config_.moe_inter_dim});
}

// delta = shared and routed experts, of this rank's slice of the tokens and then of the whole group's.
void Transformer::MoeOverWorld(const MoeWeights& w) {
  const int count = inputs_.slice_tokens(), first = layout_.tp_rank() * count;
  const DType act = backend_->activation_dtype();
  void* const slice = Offset(space_.delta->data, first * config_.dim, act);
  if (count > 0) backend_->Route(RouteTo(w, first, count));
  fixed_experts_.Run(w, {.x = Offset(space_.normed->data, first * config_.dim, act),
                         .ids = space_.expert_ids->as<int32_t>(),
                         .weights = space_.expert_weights->as<float>(),
                         .local_index = space_.local_index->as<int32_t>(),
                         .count = count,
                         .out = slice});
  if (layout_.tensor_parallel == 1) return;
  comm_.act_tensor->AllGather(slice, space_.delta->data, count * config_.dim * DTypeSize(act));
}

RouteParams Transformer::RouteTo(const MoeWeights& w, int first, int count) {
  const bool grouped = config_.topk_method != TopkMethod::kGreedy;
  return {.x = Offset(space_.normed->data, first * config_.dim, backend_->activation_dtype()),
          .gate = w.gate->as<float>(),
          .bias = w.bias == nullptr ? nullptr : w.bias->as<float>(),
          .positions = inputs_.positions() + first,
          .tokens = count,
          .dim = config_.dim,
          .experts = static_cast<int>(config_.n_routed_experts),
          .top_k = static_cast<int>(config_.n_activated_experts),
          .groups = grouped ? static_cast<int>(config_.n_expert_groups) : 1,
          .limited_groups = grouped ? static_cast<int>(config_.n_limited_groups) : 1,
          .score = config_.score_func == ScoreFunc::kSoftmax ? RouterScore::kSoftmax
                                                             : RouterScore::kSigmoid,
          .group_score = config_.topk_method == TopkMethod::kNoAuxTc ? GroupScore::kTopTwoSum
                                                                     : GroupScore::kMax,
          .normalise = config_.norm_topk_prob,
          .route_scale = config_.route_scale,
          .ids = space_.expert_ids->as<int32_t>(),
          .weights = space_.expert_weights->as<float>()};
}

}  // namespace hadal
