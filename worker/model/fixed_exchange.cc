#include "worker/model/fixed_exchange.h"

#include <numeric>
#include <vector>

#include "worker/model/step_inputs.h"

namespace hadal {

FixedExchange::Room FixedExchange::RoomFor(const Layout& layout, const ModelOptions& options) {
  const int64_t own = StepInputs::MaxSliceTokens(layout, options);
  return {own * layout.world(), own};
}

int64_t FixedExchange::Bytes(const ModelConfig& config, const Layout& layout, DType activation,
                             const ModelOptions& options) {
  const auto [all, own] = RoomFor(layout, options);
  return (2 * all + own) * config.dim * DTypeSize(activation) +
         all * config.n_activated_experts * 8 + own * 4;
}

FixedExchange::FixedExchange(const ModelConfig& config, const Layout& layout, Backend* backend,
                             const CommGroup& comm, const ModelOptions& options)
    : dim_(config.dim),
      top_k_(static_cast<int>(config.n_activated_experts)),
      experts_(static_cast<int>(config.n_routed_experts)),
      width_(config.moe_inter_dim),
      backend_(backend),
      world_(comm.act_world) {
  const auto [all, own] = RoomFor(layout, options);
  if (own == 0) return;
  const int64_t row_bytes = dim_ * DTypeSize(backend->activation_dtype());
  x_ = backend->Allocate(all * row_bytes);
  ids_ = backend->Allocate(all * top_k_ * 4);
  weights_ = backend->Allocate(all * top_k_ * 4);
  partial_ = backend->Allocate(all * row_bytes);
  sums_ = backend->Allocate(own * row_bytes);
  row_of_ = backend->Allocate(own * 4);
  std::vector<int32_t> rows(own);
  std::iota(rows.begin(), rows.end(), 0);
  backend->CopyToDevice(row_of_->data, rows.data(), own * 4);
}

void FixedExchange::Run(const MoeWeights& weights, const Tokens& tokens) {
  if (tokens.count == 0) return;
  const DType act = backend_->activation_dtype();
  const int64_t choices = int64_t{tokens.count} * top_k_;
  const Communicator::Gather gathers[] = {
      {tokens.x, x_->data, tokens.count * dim_ * DTypeSize(act)},
      {tokens.ids, ids_->data, choices * 4},
      {tokens.weights, weights_->data, choices * 4}};
  world_->AllGatherEach(gathers);
  backend_->Moe({.x = x_->data,
                 .ids = ids_->as<int32_t>(),
                 .weights = weights_->as<float>(),
                 .local_index = tokens.local_index,
                 .w13 = weights.w13.get(),
                 .w2 = weights.w2.get(),
                 .shared = {},
                 .out = partial_->data,
                 .tokens = tokens.count * world_->size(),
                 .top_k = top_k_,
                 .experts = experts_,
                 .dim = dim_,
                 .width = width_});
  void* const sums = tokens.accumulate ? sums_->data : tokens.out;
  world_->ReduceScatterSum(partial_->data, sums, tokens.count * dim_, act);
  if (!tokens.accumulate) return;
  backend_->AddRows({.rows = sums, .row_of = row_of_->as<int32_t>(), .out = tokens.out,
                     .accumulate = true, .tokens = tokens.count, .width = 1, .dim = dim_});
}

bool FixedExchangePays(const ModelConfig& config, const Layout& layout, const Backend& backend) {
  const bool moe = config.n_dense_layers < config.n_layers;
  return layout.data_parallel > 1 && moe && backend.replays() &&
         2 * config.n_activated_experts >= layout.world();
}

}  // namespace hadal
