#include "worker/model/expert_exchange.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace hadal {
namespace {

int64_t Sum(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

}  // namespace

ExpertExchange::ExpertExchange(const ModelConfig& config, Backend* backend,
                               std::shared_ptr<Communicator> world, int64_t exchange_rows)
    : dim_(static_cast<int>(config.dim)),
      top_k_(static_cast<int>(config.n_activated_experts)),
      width_(config.moe_inter_dim),
      row_bytes_(config.dim * DTypeSize(backend->activation_dtype())),
      backend_(backend),
      world_(std::move(world)),
      placement_(config.n_routed_experts, world_->size()) {
  if (exchange_rows == 0) return;
  for (auto* buffer : {&send_, &arrived_, &computed_}) {
    *buffer = backend_->Allocate(exchange_rows * row_bytes_);
  }
}

int64_t ExpertExchange::EvenRows(const ModelConfig& config, const Layout& layout, int64_t tokens) {
  return (tokens * config.n_activated_experts + layout.tensor_parallel - 1) / layout.tensor_parallel;
}

void ExpertExchange::SortByExpert() {
  const int experts = placement_.local_count();
  offsets_.assign(experts + 1, 0);
  for (int32_t e : expert_) ++offsets_[e + 1];
  std::partial_sum(offsets_.begin(), offsets_.end(), offsets_.begin());
  next_row_.assign(offsets_.begin(), offsets_.end() - 1);
  row_token_.resize(expert_.size());
  position_.resize(expert_.size());
  for (size_t i = 0; i < expert_.size(); ++i) {
    position_[i] = next_row_[expert_[i]]++;
    row_token_[position_[i]] = source_[i];
  }
}

void ExpertExchange::RunExperts(const MoeWeights& weights, const void* x, void* row_out) {
  backend_->MoeMlp({.x = x,
                    .w13 = weights.w13.view.data(),
                    .w2 = weights.w2.view.data(),
                    .experts = placement_.local_count(),
                    .expert_offsets = offsets_.data(),
                    .row_token = row_token_.data(),
                    .row_out = row_out,
                    .rows = static_cast<int>(row_token_.size()),
                    .dim = dim_,
                    .width = width_});
}

void ExpertExchange::RunLocal(const MoeWeights& weights, const Tokens& tokens, void* row_out) {
  expert_.clear();
  source_.clear();
  row_of_.assign(static_cast<size_t>(tokens.count) * top_k_, -1);
  for (int i = 0; i < tokens.count * top_k_; ++i) {
    if (placement_.owner(tokens.ids[i]) != world_->rank()) continue;
    row_of_[i] = static_cast<int32_t>(expert_.size());
    expert_.push_back(placement_.local_index(tokens.ids[i]));
    source_.push_back(i / top_k_);
  }
  SortByExpert();
  for (int32_t& row : row_of_) {
    if (row >= 0) row = position_[row];
  }
  RunExperts(weights, tokens.x, row_out);
  backend_->MoeCombine({.row_out = row_out, .row_of = row_of_.data(), .weights = tokens.weights,
                        .out = tokens.out, .accumulate = tokens.accumulate, .tokens = tokens.count,
                        .top_k = top_k_, .dim = dim_});
}

void ExpertExchange::RunExchange(const MoeWeights& weights, const Tokens& tokens,
                                 const uint8_t* served) {
  Dispatch(tokens, served);
  RunArrivals(weights);
  backend_->MoeCombine({.row_out = send_->data, .row_of = row_of_.data(), .weights = tokens.weights,
                        .out = tokens.out, .accumulate = tokens.accumulate, .tokens = tokens.count,
                        .top_k = top_k_, .dim = dim_});
}

// Lists the rows by destination, in token order, and sends each served token to its experts' owners.
void ExpertExchange::Dispatch(const Tokens& tokens, const uint8_t* served) {
  const int slots = tokens.count * top_k_;
  send_rows_.assign(world_->size(), 0);
  for (int i = 0; i < slots; ++i) {
    if (served[i / top_k_]) ++send_rows_[placement_.owner(tokens.ids[i])];
  }
  next_send_.assign(world_->size(), 0);
  for (int r = 1; r < world_->size(); ++r) next_send_[r] = next_send_[r - 1] + send_rows_[r - 1];
  const int64_t sent = Sum(send_rows_);
  row_of_.assign(slots, -1);
  send_token_.resize(sent);
  send_expert_.resize(sent);
  for (int i = 0; i < slots; ++i) {
    if (!served[i / top_k_]) continue;
    const int64_t row = next_send_[placement_.owner(tokens.ids[i])]++;
    row_of_[i] = static_cast<int32_t>(row);
    send_token_[row] = i / top_k_;
    send_expert_[row] = placement_.local_index(tokens.ids[i]);
  }
  ExchangeCounts();
  const int64_t arrivals = Sum(recv_rows_);
  expert_.resize(arrivals);
  for (int r = 0; r < world_->size(); ++r) {
    send_bytes_[r] = send_rows_[r] * static_cast<int64_t>(sizeof(int32_t));
    recv_bytes_[r] = recv_rows_[r] * static_cast<int64_t>(sizeof(int32_t));
  }
  world_->AllToAllV(send_expert_.data(), send_bytes_, expert_.data(), recv_bytes_);
  Gather(tokens.x, tokens.count, send_token_, Grow(&send_, sent));
  for (int r = 0; r < world_->size(); ++r) {
    send_bytes_[r] = send_rows_[r] * row_bytes_;
    recv_bytes_[r] = recv_rows_[r] * row_bytes_;
  }
  world_->AllToAllV(send_->data, send_bytes_, Grow(&arrived_, arrivals), recv_bytes_);
}

void ExpertExchange::ExchangeCounts() {
  send_bytes_.assign(world_->size(), sizeof(int64_t));
  recv_bytes_.assign(world_->size(), sizeof(int64_t));
  recv_rows_.resize(world_->size());
  world_->AllToAllV(send_rows_.data(), send_bytes_, recv_rows_.data(), recv_bytes_);
}

// Computes what arrived and sends the outputs back, each to where its token came from.
void ExpertExchange::RunArrivals(const MoeWeights& weights) {
  const auto arrivals = static_cast<int64_t>(expert_.size());
  source_.resize(arrivals);
  std::iota(source_.begin(), source_.end(), 0);
  SortByExpert();
  RunExperts(weights, arrived_->data, Grow(&computed_, arrivals));
  Gather(computed_->data, arrivals, position_, arrived_->data);
  for (int r = 0; r < world_->size(); ++r) {
    send_bytes_[r] = send_rows_[r] * row_bytes_;
    recv_bytes_[r] = recv_rows_[r] * row_bytes_;
  }
  world_->AllToAllV(arrived_->data, recv_bytes_, send_->data, send_bytes_);
}

// Looking rows up in a table is what an embedding does.
void ExpertExchange::Gather(const void* rows, int64_t row_count, const std::vector<int32_t>& index,
                            void* out) {
  if (index.empty()) return;
  backend_->Embed({.ids = index.data(),
                   .tokens = static_cast<int>(index.size()),
                   .table = rows,
                   .table_dtype = backend_->activation_dtype(),
                   .vocab_begin = 0,
                   .vocab_end = static_cast<int32_t>(row_count),
                   .dim = dim_,
                   .out = out});
}

void* ExpertExchange::Grow(std::unique_ptr<DeviceBuffer>* buffer, int64_t rows) {
  const int64_t bytes = std::max<int64_t>(rows, 1) * row_bytes_;
  if (*buffer == nullptr || (*buffer)->bytes < bytes) *buffer = backend_->Allocate(bytes + bytes / 2);
  return (*buffer)->data;
}

}  // namespace hadal
