#include "worker/model/expert_exchange.h"

#include <algorithm>
#include <numeric>

namespace hadal {
namespace {

int64_t Sum(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

int FanOut(const ModelConfig& config, int world) {
  return static_cast<int>(std::min<int64_t>(config.n_activated_experts, world));
}

}  // namespace

ExpertExchange::ExpertExchange(const ModelConfig& config, Backend* backend, const CommGroup& comm,
                               int64_t rows)
    : dim_(config.dim),
      top_k_(static_cast<int>(config.n_activated_experts)),
      experts_(static_cast<int>(config.n_routed_experts)),
      width_(config.moe_inter_dim),
      row_bytes_(config.dim * DTypeSize(backend->activation_dtype())),
      backend_(backend),
      world_(comm.world),
      act_world_(comm.act_world),
      placement_(config.n_routed_experts, world_->size()),
      fan_out_(FanOut(config, world_->size())) {
  if (rows == 0) return;
  for (auto* buffer : {&send_, &arrived_, &computed_}) {
    *buffer = backend_->Allocate(rows * row_bytes_);
  }
}

int64_t ExpertExchange::EvenRows(const ModelConfig& config, const Layout& layout, int64_t tokens) {
  const int64_t rows = tokens * FanOut(config, layout.world());
  return (rows + layout.tensor_parallel - 1) / layout.tensor_parallel;
}

void ExpertExchange::Run(const MoeWeights& weights, const Tokens& tokens) {
  const bool shared = weights.shared.width > 0 && tokens.count > 0;
  if (shared) {
    backend_->Mlp({.x = tokens.x, .w13 = weights.shared.w13.get(), .w2 = weights.shared.w2.get(),
                   .width = weights.shared.width, .out = tokens.out, .tokens = tokens.count});
  }
  ListSends(tokens);
  ExchangeCounts();
  ExchangeChoices();
  const int64_t sent = Sum(send_rows_);
  Grow(&send_, sent * row_bytes_);
  Grow(&arrived_, Sum(recv_rows_) * row_bytes_);
  if (sent > 0) {
    // Looking rows up in a table is what an embedding does.
    backend_->Embed({.ids = ToBackend(send_token_, &index_buffer_),
                     .tokens = static_cast<int>(sent),
                     .table = tokens.x,
                     .table_dtype = backend_->activation_dtype(),
                     .vocab_begin = 0,
                     .vocab_end = tokens.count,
                     .dim = dim_,
                     .out = send_->data});
  }
  ToBytes(send_rows_, row_bytes_, &send_bytes_);
  ToBytes(recv_rows_, row_bytes_, &recv_bytes_);
  act_world_->AllToAllV(send_->data, send_bytes_, arrived_->data, recv_bytes_);
  RunArrivals(weights, tokens.local_index);
  act_world_->AllToAllV(computed_->data, recv_bytes_, send_->data, send_bytes_);
  if (tokens.count == 0) return;
  backend_->AddRows({.rows = send_->data, .row_of = ToBackend(row_of_, &index_buffer_),
                     .out = tokens.out, .accumulate = shared, .tokens = tokens.count,
                     .width = fan_out_, .dim = dim_});
}

// One row for every served token and rank that owns some of its experts, by rank, then by token.
void ExpertExchange::ListSends(const Tokens& tokens) {
  ids_.resize(static_cast<size_t>(tokens.count) * top_k_);
  weights_.resize(ids_.size());
  if (tokens.count > 0) {
    backend_->CopyToHost(ids_.data(), tokens.ids, static_cast<int64_t>(ids_.size() * 4));
    backend_->CopyToHost(weights_.data(), tokens.weights, static_cast<int64_t>(ids_.size() * 4));
  }
  send_rows_.assign(world_->size(), 0);
  send_token_.clear();
  sent_.ids.clear();
  sent_.weights.clear();
  row_of_.assign(static_cast<size_t>(tokens.count) * fan_out_, -1);
  std::vector<int> ranks_of(tokens.count, 0);
  for (int rank = 0; rank < world_->size(); ++rank) {
    for (int t = 0; t < tokens.count; ++t) {
      if (!tokens.served[t]) continue;
      const int32_t* ids = &ids_[static_cast<size_t>(t) * top_k_];
      const auto here = [&](int32_t id) { return placement_.owner(id) == rank; };
      if (std::none_of(ids, ids + top_k_, here)) continue;
      row_of_[t * fan_out_ + ranks_of[t]++] = static_cast<int32_t>(send_token_.size());
      send_token_.push_back(t);
      ++send_rows_[rank];
      for (int j = 0; j < top_k_; ++j) {
        sent_.ids.push_back(here(ids[j]) ? ids[j] : -1);
        sent_.weights.push_back(weights_[static_cast<size_t>(t) * top_k_ + j]);
      }
    }
  }
}

void ExpertExchange::ExchangeCounts() {
  send_bytes_.assign(world_->size(), sizeof(int64_t));
  recv_rows_.resize(world_->size());
  world_->AllToAllV(send_rows_.data(), send_bytes_, recv_rows_.data(), send_bytes_);
}

void ExpertExchange::ExchangeChoices() {
  const int64_t entries = Sum(recv_rows_) * top_k_;
  received_.ids.resize(entries);
  received_.weights.resize(entries);
  ToBytes(send_rows_, top_k_ * 4, &send_bytes_);
  ToBytes(recv_rows_, top_k_ * 4, &recv_bytes_);
  world_->AllToAllV(sent_.ids.data(), send_bytes_, received_.ids.data(), recv_bytes_);
  world_->AllToAllV(sent_.weights.data(), send_bytes_, received_.weights.data(), recv_bytes_);
}

void ExpertExchange::RunArrivals(const MoeWeights& weights, const int32_t* local_index) {
  const int64_t rows = Sum(recv_rows_);
  Grow(&computed_, rows * row_bytes_);
  if (rows == 0) return;
  backend_->Moe({.x = arrived_->data,
                 .ids = ToBackend(received_.ids, &ids_buffer_),
                 .weights = ToBackend(received_.weights, &weight_buffer_),
                 .local_index = local_index,
                 .w13 = weights.w13.get(),
                 .w2 = weights.w2.get(),
                 .shared = {},
                 .out = computed_->data,
                 .tokens = static_cast<int>(rows),
                 .top_k = top_k_,
                 .experts = experts_,
                 .dim = dim_,
                 .width = width_});
}

void ExpertExchange::ToBytes(const std::vector<int64_t>& rows, int64_t row_bytes,
                             std::vector<int64_t>* bytes) {
  bytes->clear();
  for (int64_t count : rows) bytes->push_back(count * row_bytes);
}

template <typename T>
const T* ExpertExchange::ToBackend(const std::vector<T>& values,
                                   std::unique_ptr<DeviceBuffer>* buffer) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  void* data = Grow(buffer, bytes);
  backend_->CopyToDevice(data, values.data(), bytes);
  return static_cast<const T*>(data);
}

void* ExpertExchange::Grow(std::unique_ptr<DeviceBuffer>* buffer, int64_t bytes) {
  const int64_t wanted = std::max<int64_t>(bytes, 1);
  if (*buffer == nullptr || (*buffer)->bytes < wanted) {
    backend_->Synchronize();  // ops in flight may use the old one
    *buffer = backend_->Allocate(wanted + wanted / 2);
  }
  return (*buffer)->data;
}

}  // namespace hadal
