#include "worker/model/workspace.h"

#include <algorithm>
#include <cmath>

#include "worker/model/expert_exchange.h"

namespace hadal {

DType CacheDType(const ModelConfig& config) {
  return config.dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
}

int64_t LayerCacheBytes(const ModelConfig& config, int64_t blocks) {
  return blocks * kBlockSize * config.latent_dim() * DTypeSize(CacheDType(config));
}

int64_t ExchangeRows(const ModelConfig& config, const Layout& layout, const ModelOptions& options) {
  if (layout.data_parallel == 1 || config.n_dense_layers >= config.n_layers) return 0;
  return ExpertExchange::EvenRows(config, layout, options.max_step_tokens);
}

int64_t MakeWorkspace(const ModelConfig& config, const Layout& layout, const ModelOptions& options,
                      DType activation, Backend* backend, Workspace* workspace) {
  int64_t total = 0;
  auto make = [&](Workspace::Buffer* buffer, int64_t count, int64_t size) {
    const int64_t bytes = std::max<int64_t>(count * size, 1);
    total += bytes;
    if (backend != nullptr) *buffer = backend->Allocate(bytes);
  };
  const int parts = layout.tensor_parallel;
  const int64_t act = DTypeSize(activation);
  const int64_t n = options.max_step_tokens;
  const int64_t rows = options.max_step_logits;
  const int64_t heads = config.n_heads / parts;
  const int64_t width = std::max(SplitRange(config.inter_dim, parts, layout.tp_rank()).size(),
                                 SplitRange(config.shared_inter_dim(), parts, layout.tp_rank()).size());
  const int64_t vocab = SplitRange(config.vocab_size, parts, layout.tp_rank()).size();
  Workspace& w = *workspace;
  make(&w.residual, n * config.dim, act);
  make(&w.normed, n * config.dim, act);
  make(&w.delta, n * config.dim, act);
  make(&w.latent_in, n * (config.q_lora_rank + config.latent_dim()), act);
  make(&w.q_normed, n * config.q_lora_rank, act);
  make(&w.q, n * heads * config.qk_head_dim(), act);
  make(&w.q_latent, n * heads * config.kv_lora_rank, act);
  make(&w.o_latent, n * heads * config.kv_lora_rank, act);
  make(&w.attn_out, n * heads * config.v_head_dim, act);
  make(&w.gate_up, n * 2 * width, act);
  make(&w.mlp_act, n * width, act);
  const bool local = layout.data_parallel == 1;
  make(&w.row_out, local ? n * config.n_activated_experts * config.dim : 0, act);
  make(&w.token_ids, n, sizeof(int32_t));
  make(&w.positions, n, sizeof(int32_t));
  make(&w.cache_rows, n, sizeof(int64_t));
  make(&w.logit_hidden, rows * config.dim, act);
  make(&w.logit_delta, rows * config.dim, act);
  make(&w.logit_normed, rows * config.dim, act);
  make(&w.logits, rows * vocab, act);
  make(&w.cos_sin, config.max_seq_len * config.qk_rope_head_dim, sizeof(float));
  return total;
}

std::vector<float> RopeTable(const ModelConfig& config) {
  const std::vector<float> theta = config.RopeFrequencies();
  double magnitude = 1;
  if (config.yarn) {
    auto m = [&](double scale) { return 0.1 * scale * std::log(config.yarn->factor) + 1; };
    magnitude = m(config.yarn->mscale) / m(config.yarn->mscale_all_dim);
  }
  std::vector<float> table;
  table.reserve(config.max_seq_len * config.qk_rope_head_dim);
  for (int64_t t = 0; t < config.max_seq_len; ++t) {
    for (float speed : theta) {
      const double angle = static_cast<double>(t) * speed;
      table.push_back(static_cast<float>(std::cos(angle) * magnitude));
      table.push_back(static_cast<float>(std::sin(angle) * magnitude));
    }
  }
  return table;
}

}  // namespace hadal
