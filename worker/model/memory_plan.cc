#include <algorithm>

#include "worker/model/expanded_prompt.h"
#include "worker/model/expert_exchange.h"
#include "worker/model/fixed_exchange.h"
#include "worker/model/model.h"
#include "worker/model/step_inputs.h"
#include "worker/model/weights.h"
#include "worker/model/workspace.h"

namespace hadal {
namespace {

// Messages being summed over the group, and the gathered logits.
int64_t CommBytes(const ModelConfig& config, const Layout& layout, const ModelOptions& options,
                  int64_t act) {
  if (layout.tensor_parallel == 1) return 0;
  const int64_t copies = layout.tensor_parallel == 2 ? 2 : 1;
  return (copies * options.max_step_tokens * config.dim +
          options.max_step_logits * config.vocab_size) * act;
}

// A recorded step keeps the launches of its kernels on the device, and the first run of a kernel loads
// it. Reserved, not allocated: the worker says when it took more.
int64_t RecordedBytes(const ModelConfig& config, const Layout& layout, const ModelOptions& options) {
  constexpr int64_t kLayerBytes = 64 << 10;   // about 16 launches
  constexpr int64_t kLoadedBytes = 128 << 20;
  const auto steps =
      static_cast<int64_t>(StepInputs::ReplayShapes(layout, options, config.max_seq_len).size());
  return steps == 0 ? 0 : kLoadedBytes + steps * config.n_layers * kLayerBytes;
}

}  // namespace

MemoryPlan PlanMemory(const ModelConfig& config, const Layout& layout, const Backend& backend,
                      const ModelOptions& options) {
  const DType activation = backend.activation_dtype();
  const int64_t act = DTypeSize(activation);
  Workspace unused;
  const int64_t exchange = ExchangeRows(config, layout, options);
  const int64_t expanded = ExpandedPrompt::Bytes(config, layout, backend, options);
  return {.weights = PlanWeightBytes(config, layout, SharedWidth(config, layout, options), backend),
          .kv_per_block = config.n_layers * LayerCacheBytes(config, 1),
          .workspace = MakeWorkspace(config, layout, options, activation, nullptr, &unused) +
                       StepInputs::Bytes(layout, options, config.max_seq_len) +
                       ExpertExchange::BufferBytes(config, activation, exchange) +
                       FixedExchange::Bytes(config, layout, activation, options) +
                       backend.ScratchBytes(StepOpLimits(config, layout, options)) +
                       CommBytes(config, layout, options, act) + expanded,
          .expanded = expanded,
          .recorded = RecordedBytes(config, layout, options)};
}

}  // namespace hadal
