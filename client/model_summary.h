#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/layout.h"
#include "common/model_config.h"
#include "common/safetensors.h"
#include "common/tensor_inventory.h"

namespace hadal {

// Tensors that differ in their layer and expert alone.
struct TensorGroup {
  std::string pattern;  // "model.layers.*.mlp.experts.*.up_proj.weight"
  std::string kind;     // "attention", "routed experts", ...
  ExpectedTensor first;
  DType dtype = DType::kBF16;
  int64_t count = 0;  // in the whole model
};

// What one rank holds of a group.
struct RankShare {
  std::vector<int64_t> shape;  // of each tensor; empty when the rank holds none
  int64_t count = 0;
  int64_t bytes = 0;  // of all `count` tensors
};

// Groups in the order of the forward pass. The types are those of `checkpoint`, without one (null)
// the first that the config allows.
std::vector<TensorGroup> GroupTensors(const ModelConfig& config, const Checkpoint* checkpoint);

// REQUIRES: ValidateLayout(config, layout).ok().
RankShare ShareOf(const ModelConfig& config, const TensorGroup& group, const Layout& layout);

// Numbers of weights; scales are not counted.
struct ParameterCounts {
  int64_t total = 0;
  int64_t per_token = 0;  // without the routed experts that a token does not visit
};
ParameterCounts CountParameters(const ModelConfig& config, const std::vector<TensorGroup>& groups);

// Of the latent cache, all layers, on each rank.
int64_t KvBytesPerToken(const ModelConfig& config);

}  // namespace hadal
