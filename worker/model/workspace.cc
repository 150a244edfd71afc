#include "worker/model/workspace.h"

#include <algorithm>
#include <cmath>

#include "worker/model/expert_exchange.h"
#include "worker/model/step_inputs.h"

namespace hadal {
namespace {

// Makes all `bytes` of it 0.
void Clear(Backend* backend, DeviceBuffer* buffer, int64_t bytes) {
  const std::vector<uint8_t> zeros(static_cast<size_t>(std::min(bytes, int64_t{1} << 20)));
  for (int64_t done = 0; done < bytes; done += static_cast<int64_t>(zeros.size())) {
    backend->CopyToDevice(buffer->as<uint8_t>() + done, zeros.data(),
                          std::min(bytes - done, static_cast<int64_t>(zeros.size())));
  }
}

}  // namespace

DType CacheDType(const ModelConfig& config) {
  return config.dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
}

int64_t LayerCacheBytes(const ModelConfig& config, int64_t blocks) {
  return blocks * kBlockSize * config.latent_dim() * DTypeSize(CacheDType(config));
}

Range SharedWidth(const ModelConfig& config, const Layout& layout, const ModelOptions& options) {
  const int64_t width = config.shared_inter_dim();
  if (!options.fixed_exchange) return SplitRange(width, layout.tensor_parallel, layout.tp_rank());
  const int64_t unit = config.dtype == DType::kF8E4M3 ? config.scale_block : 1;
  const Range units = SplitRange((width + unit - 1) / unit, layout.world(), layout.rank);
  return {units.begin * unit, std::min(units.end * unit, width)};
}

int64_t ExchangeRows(const ModelConfig& config, const Layout& layout, const ModelOptions& options) {
  if (layout.data_parallel == 1 || options.fixed_exchange) return 0;
  if (config.n_dense_layers >= config.n_layers) return 0;
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
  const int64_t n = StepInputs::PaddedTokens(options);
  const int64_t sliced = std::max(n, int64_t{StepInputs::MaxSliceTokens(layout, options)} * parts);
  const int64_t rows = options.max_step_logits;
  const int64_t heads = config.n_heads / parts;
  const int64_t own_vocab = SplitRange(config.vocab_size, parts, layout.tp_rank()).size();
  const int64_t q_width = heads * config.qk_head_dim();
  const bool compressed = config.q_lora_rank > 0;
  const int64_t top_k = config.n_activated_experts;
  // Rows of padding are read but not always written. What becomes of them is nobody's in a real layout;
  // a stand-in for other ranks puts them where those would put theirs.
  auto make_finite = [&](Workspace::Buffer* buffer, int64_t count) {
    make(buffer, count, act);
    if (backend != nullptr) Clear(backend, buffer->get(), count * act);
  };
  Workspace& w = *workspace;
  make(&w.residual, n * config.dim, sizeof(float));
  make(&w.spare_residual, n * config.dim, sizeof(float));
  make_finite(&w.normed, sliced * config.dim);
  make(&w.delta, sliced * config.dim, act);
  make(&w.attn_in, n * ((compressed ? config.q_lora_rank : q_width) + config.latent_dim()), act);
  make(&w.q_normed, n * config.q_lora_rank, act);
  make(&w.q, compressed ? n * q_width : 0, act);
  make(&w.q_latent, n * heads * config.kv_lora_rank, act);
  make_finite(&w.o_latent, n * heads * config.kv_lora_rank);
  make(&w.attn_out, n * heads * config.v_head_dim, act);
  make(&w.expert_ids, n * top_k, sizeof(int32_t));
  make(&w.expert_weights, n * top_k, sizeof(float));
  make(&w.local_index, config.n_routed_experts, sizeof(int32_t));
  make(&w.last_tokens, options.max_rows, sizeof(int32_t));
  make(&w.logit_hidden, rows * config.dim, sizeof(float));
  make(&w.logit_delta, rows * config.dim, act);
  make(&w.logit_normed, rows * config.dim, act);
  make(&w.own_logits, parts > 1 ? rows * own_vocab : 0, sizeof(float));
  make(&w.pieces, parts > 1 ? rows * config.vocab_size : 0, sizeof(float));
  make(&w.logits, rows * config.vocab_size, sizeof(float));
  make(&w.cos_sin, config.max_seq_len * config.qk_rope_head_dim, sizeof(float));
  return total;
}

OpLimits StepOpLimits(const ModelConfig& config, const Layout& layout, const ModelOptions& options) {
  const int parts = layout.tensor_parallel;
  const bool moe = config.n_dense_layers < config.n_layers;
  const int tokens = StepInputs::PaddedTokens(options);
  const int64_t exchanged = int64_t{StepInputs::MaxSliceTokens(layout, options)} * layout.world();
  return {.tokens = tokens,
          .logit_rows = options.max_step_logits,
          .dim = config.dim,
          .mlp_width = std::max(SplitRange(config.inter_dim, parts, layout.tp_rank()).size(),
                                SharedWidth(config, layout, options).size()),
          .heads = static_cast<int>(config.n_heads / parts),
          .latent_rank = static_cast<int>(config.kv_lora_rank),
          .nope_dim = static_cast<int>(config.qk_nope_head_dim),
          .rope_dim = static_cast<int>(config.qk_rope_head_dim),
          .v_dim = static_cast<int>(config.v_head_dim),
          .q_rank = config.q_lora_rank,
          .max_context = config.max_seq_len,
          .experts = moe ? static_cast<int>(config.n_routed_experts) : 0,
          .local_experts = moe ? static_cast<int>(config.n_routed_experts / layout.world()) : 0,
          .top_k = static_cast<int>(config.n_activated_experts),
          // Tokens of all groups may choose an expert here; with an ExpertExchange more rows come when
          // routing is uneven.
          .moe_tokens = std::max(int64_t{tokens} * layout.data_parallel, exchanged),
          .moe_width = config.moe_inter_dim,
          .vocab = config.vocab_size};
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
