#pragma once

#include <cstdint>
#include <memory>

#include "common/layout.h"
#include "common/model_config.h"
#include "kernels/backend.h"
#include "worker/model/model.h"

namespace hadal {

// Keys and values of one prompt in the up-projected form, kept in all layers from one chunk to the
// next. Without it every chunk expands all positions before it again, which in a long prompt takes
// longer than the chunk itself and holds up the streams that run beside it. Kept or made again, they
// are the same bits. Backends whose MlaPrefill keeps nothing have none of it.
class ExpandedPrompt {
 public:
  ExpandedPrompt(const ModelConfig& config, const Layout& layout, Backend* backend,
                 const ModelOptions& options);
  static int64_t Bytes(const ModelConfig& config, const Layout& layout, const Backend& backend,
                       const ModelOptions& options);

  // Before each step, in the order in which they run: the prompt that is kept stays until a step has
  // chunks of others only.
  void Choose(const Batch& batch);
  // For MlaPrefill of that step.
  ExpandedKeys Layer(int64_t layer) const;

 private:
  void Keep(const BatchRow& row, int index);

  const int tiles_;             // kept of the prompt
  const int64_t layer_bytes_;
  std::unique_ptr<DeviceBuffer> memory_;  // [layers][tiles_]
  uint64_t sequence_ = 0;
  int filled_ = 0;              // tiles that steps before this one have filled
  int next_filled_ = 0;         // and this one too
  int row_ = -1;                // among this step's prefill rows
};

}  // namespace hadal
