#pragma once

#include <string>

#include "common/status.h"

namespace hadal {

struct ModelInfoOptions {
  std::string model_dir;  // a checkpoint, or a config file alone (then no tensor is checked)
  int tensor_parallel = 1;
  int data_parallel = 1;
  bool json = false;  // one JSON object instead of text
};

// What `hadal model-info` prints: the parsed configuration, parameter counts, and for the layout
// each rank's tensors with shapes and bytes as stored, and the bytes of the KV cache. A model or
// layout that cannot be loaded is refused with every reason: what is wrong with the configuration,
// or else with the layout and with the checkpoint together.
StatusOr<std::string> DescribeModel(const ModelInfoOptions& options);

}  // namespace hadal
