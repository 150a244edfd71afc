#include "worker/model/expanded_prompt.h"

#include <algorithm>

#include "worker/model/workspace.h"

namespace hadal {
namespace {

int Tiles(const ModelConfig& config, const ModelOptions& options) {
  const int64_t tokens = std::min<int64_t>(options.expanded_tokens, config.max_seq_len);
  return static_cast<int>(tokens / kBlockSize);
}

}  // namespace

int64_t ExpandedPrompt::Bytes(const ModelConfig& config, const Layout& layout,
                              const Backend& backend, const ModelOptions& options) {
  return config.n_layers * Tiles(config, options) *
         backend.ExpandedTileBytes(StepOpLimits(config, layout, options));
}

ExpandedPrompt::ExpandedPrompt(const ModelConfig& config, const Layout& layout, Backend* backend,
                               const ModelOptions& options)
    : tiles_(Tiles(config, options)),
      layer_bytes_(Bytes(config, layout, *backend, options) / config.n_layers) {
  if (layer_bytes_ > 0) memory_ = backend->Allocate(layer_bytes_ * config.n_layers);
}

void ExpandedPrompt::Choose(const Batch& batch) {
  filled_ = next_filled_;
  row_ = -1;
  if (memory_ == nullptr) return;
  const BatchRow* first = nullptr;
  int index = 0;
  for (const BatchRow& row : batch.rows) {
    if (row.kind != RowKind::kPrefill) continue;
    if (row.sequence == sequence_ && sequence_ != 0) return Keep(row, index);
    if (index++ == 0) first = &row;
  }
  if (first == nullptr || first->sequence == 0) return;
  sequence_ = first->sequence;
  filled_ = 0;
  Keep(*first, 0);
}

void ExpandedPrompt::Keep(const BatchRow& row, int index) {
  row_ = index;
  next_filled_ = std::min(tiles_, (row.start_pos + row.num_tokens) / kBlockSize);
}

ExpandedKeys ExpandedPrompt::Layer(int64_t layer) const {
  if (row_ < 0) return {};
  return {.row = row_, .data = memory_->as<uint8_t>() + layer * layer_bytes_, .tiles = tiles_,
          .filled = filled_};
}

}  // namespace hadal
