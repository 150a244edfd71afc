#include <algorithm>

#include "worker/model/expert_exchange.h"
#include "worker/model/model.h"
#include "worker/model/weights.h"
#include "worker/model/workspace.h"

namespace hadal {
namespace {

// What the ops of a step hold beside their operands: inputs rounded for a matmul, the hidden rows of
// the experts. The largest op decides, as they run one after the other.
int64_t OpScratchBytes(const ModelConfig& config, const Layout& layout, const ModelOptions& options,
                       int64_t act) {
  const int64_t n = options.max_step_tokens;
  const int64_t heads = config.n_heads / layout.tensor_parallel;
  const int64_t inputs = std::max({config.dim, config.q_lora_rank, heads * config.v_head_dim,
                                   heads * config.kv_lora_rank, heads * config.qk_nope_head_dim});
  // Of the routed rows of all groups, each rank computes an equal part when routing is even.
  const int64_t rows =
      n * config.n_activated_experts * layout.data_parallel / layout.world();
  const int64_t experts = rows * (config.dim + 3 * config.moe_inter_dim);
  return std::max(n * inputs, experts) * act;
}

// Messages being summed over the group, and the gathered logits.
int64_t CommBytes(const ModelConfig& config, const Layout& layout, const ModelOptions& options,
                  int64_t act) {
  if (layout.tensor_parallel == 1) return 0;
  const int64_t copies = layout.tensor_parallel == 2 ? 2 : 1;
  return (copies * options.max_step_tokens * config.dim +
          2 * options.max_step_logits * config.vocab_size) * act;
}

}  // namespace

MemoryPlan PlanMemory(const ModelConfig& config, const Layout& layout, const Backend& backend,
                      const ModelOptions& options) {
  const DType activation = backend.activation_dtype();
  const int64_t act = DTypeSize(activation);
  Workspace unused;
  const int64_t exchange = ExchangeRows(config, layout, options);
  return {.weights = PlanWeightBytes(config, layout, backend),
          .kv_per_block = config.n_layers * LayerCacheBytes(config, 1),
          .workspace = MakeWorkspace(config, layout, options, activation, nullptr, &unused) +
                       ExpertExchange::BufferBytes(config, activation, exchange) +
                       OpScratchBytes(config, layout, options, act) +
                       CommBytes(config, layout, options, act)};
}

}  // namespace hadal
