#include "worker/model/step_cost.h"

#include <cmath>

namespace hadal {
namespace {

// Adds up one step of one rank.
class CostCounter {
 public:
  CostCounter(const ModelConfig& config, const Layout& layout, const Backend& backend,
              const StepShape& shape)
      : config_(config), backend_(backend), parts_(layout.tensor_parallel), world_(layout.world()) {
    for (int context : shape.decode_contexts) {
      ++decode_tokens_;
      decode_keys_ += context;
    }
    for (const StepShape::Prefill& row : shape.prefill) {
      prefill_tokens_ += row.num_tokens;
      prefill_context_ += row.start_pos + row.num_tokens;
      prefill_keys_ += row.num_tokens * (row.start_pos + (row.num_tokens + 1) / 2.0);
    }
    rows_ = static_cast<double>(shape.decode_contexts.size() + shape.prefill.size());
    tokens_ = decode_tokens_ + prefill_tokens_;
    all_tokens_ = tokens_ * layout.data_parallel;
    fixed_exchange_ = shape.fixed_exchange;
  }

  StepCost Count() {
    for (int64_t l = 0; l < config_.n_layers; ++l) {
      Attention();
      if (config_.is_moe_layer(l)) {
        Experts();
      } else {
        Mlp(config_.inter_dim / parts_, 1, tokens_);
      }
    }
    const DType head = config_.dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
    Product(config_.vocab_size / parts_, config_.dim, head, 1, rows_);
    return cost_;
  }

 private:
  // `matrices` of [n, k] are read, `rows` products are made with one of them each.
  void Product(int64_t n, int64_t k, DType dtype, double matrices, double rows,
               WeightUse use = WeightUse::kStream) {
    cost_.bytes += matrices * static_cast<double>(backend_.PackedBytes(n, k, dtype, use));
    cost_.flops += 2.0 * static_cast<double>(n * k) * rows;
  }

  void Mlp(int64_t width, double matrices, double rows) {
    Product(2 * width, config_.dim, config_.dtype, matrices, rows);
    Product(config_.dim, width, config_.dtype, matrices, rows);
  }

  void Attention() {
    const int64_t heads = config_.n_heads / parts_;
    const int64_t latent = config_.kv_lora_rank;
    const int64_t q_in = config_.q_lora_rank > 0 ? config_.q_lora_rank : config_.dim;
    const DType dtype = config_.dtype;
    Product(heads * config_.qk_head_dim(), q_in, dtype, 1, tokens_);
    Product(config_.q_lora_rank + config_.latent_dim(), config_.dim, dtype, 1, tokens_);
    Product(config_.dim, heads * config_.v_head_dim, dtype, 1, tokens_);
    // Decode multiplies queries and outputs by the up-projections, prefill the keys it attends to.
    const double up_rows = decode_tokens_ + prefill_context_;
    for (const int64_t n : {config_.qk_nope_head_dim, config_.v_head_dim}) {
      Product(n, latent, dtype, static_cast<double>(heads), heads * up_rows, WeightUse::kHeads);
    }
    const int64_t cache_size = config_.dtype == DType::kF32 ? 4 : 2;
    cost_.bytes += (decode_keys_ + prefill_context_) * config_.latent_dim() * cache_size;
    cost_.flops += 2.0 * heads * decode_keys_ * (config_.latent_dim() + latent);
    cost_.flops += 2.0 * heads * prefill_keys_ * (config_.qk_head_dim() + config_.v_head_dim);
  }

  void Experts() {
    const double experts = static_cast<double>(config_.n_routed_experts);
    const double top_k = static_cast<double>(config_.n_activated_experts);
    const double touched = experts * (1 - std::pow(1 - top_k / experts, all_tokens_));
    cost_.bytes += experts * config_.dim * 4;
    cost_.flops += 2.0 * experts * config_.dim * tokens_;
    Mlp(config_.moe_inter_dim, touched / world_, all_tokens_ * top_k / world_);
    if (config_.n_shared_experts == 0) return;
    const int pieces = fixed_exchange_ ? world_ : parts_;
    Mlp(config_.shared_inter_dim() / pieces, 1, fixed_exchange_ ? all_tokens_ : tokens_);
  }

  const ModelConfig& config_;
  const Backend& backend_;
  const int parts_;
  const int world_;
  bool fixed_exchange_ = false;
  double tokens_ = 0;
  double all_tokens_ = 0;       // of all D groups
  double rows_ = 0;
  double decode_tokens_ = 0;
  double decode_keys_ = 0;      // pairs of query and key
  double prefill_tokens_ = 0;
  double prefill_context_ = 0;  // keys that are up-projected
  double prefill_keys_ = 0;     // pairs of query and key
  StepCost cost_;
};

}  // namespace

StepCost CountStep(const ModelConfig& config, const Layout& layout, const Backend& backend,
                   const StepShape& shape) {
  return CostCounter(config, layout, backend, shape).Count();
}

}  // namespace hadal
