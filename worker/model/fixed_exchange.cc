#include "worker/model/fixed_exchange.h"

#include "worker/model/step_inputs.h"

namespace hadal {

int64_t FixedExchange::MaxRows(const Layout& layout, const ModelOptions& options) {
  return int64_t{StepInputs::MaxSliceTokens(layout, options)} * layout.world();
}

int64_t FixedExchange::Bytes(const ModelConfig& config, const Layout& layout, DType activation,
                             const ModelOptions& options) {
  const int64_t choice_bytes = config.n_activated_experts * 8;
  return MaxRows(layout, options) * (2 * config.dim * DTypeSize(activation) + choice_bytes);
}

FixedExchange::FixedExchange(const ModelConfig& config, const Layout& layout, Backend* backend,
                             const CommGroup& comm, const ModelOptions& options)
    : dim_(config.dim),
      top_k_(static_cast<int>(config.n_activated_experts)),
      experts_(static_cast<int>(config.n_routed_experts)),
      width_(config.moe_inter_dim),
      backend_(backend),
      world_(comm.act_world) {
  const int64_t rows = MaxRows(layout, options);
  if (rows == 0) return;
  const int64_t row_bytes = dim_ * DTypeSize(backend->activation_dtype());
  x_ = backend->Allocate(rows * row_bytes);
  ids_ = backend->Allocate(rows * top_k_ * 4);
  weights_ = backend->Allocate(rows * top_k_ * 4);
  partial_ = backend->Allocate(rows * row_bytes);
}

void FixedExchange::Run(const MoeWeights& weights, const Tokens& tokens) {
  if (tokens.count == 0) return;
  const DType act = backend_->activation_dtype();
  const int64_t choices = int64_t{tokens.count} * top_k_;
  const Communicator::Gather gathers[] = {
      {tokens.x, x_->data, tokens.count * dim_ * DTypeSize(act)},
      {tokens.ids, ids_->data, choices * 4},  // kGatheredIds
      {tokens.weights, weights_->data, choices * 4}};
  world_->AllGatherEach(gathers);
  const MlpWeights& shared = weights.shared;
  backend_->Moe({.x = x_->data,
                 .ids = ids_->as<int32_t>(),
                 .weights = weights_->as<float>(),
                 .local_index = tokens.local_index,
                 .w13 = weights.w13.get(),
                 .w2 = weights.w2.get(),
                 .shared = {.w13 = shared.w13.get(), .w2 = shared.w2.get(), .width = shared.width},
                 .out = partial_->data,
                 .tokens = tokens.count * world_->size(),
                 .top_k = top_k_,
                 .experts = experts_,
                 .dim = dim_,
                 .width = width_});
  world_->ReduceScatterSum(partial_->data, tokens.out, tokens.count * dim_, act);
}

bool MostRanksMeetAToken(const ModelConfig& config, const Layout& layout) {
  const bool moe = config.n_dense_layers < config.n_layers;
  return layout.data_parallel > 1 && moe && 2 * config.n_activated_experts >= layout.world();
}

bool FixedExchangePays(const ModelConfig& config, const Layout& layout, const Backend& backend) {
  return backend.replays() && MostRanksMeetAToken(config, layout);
}

}  // namespace hadal
