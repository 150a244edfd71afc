#pragma once

#include <cstdint>
#include <memory>

#include "common/model_config.h"
#include "common/safetensors.h"
#include "common/status.h"

namespace hadal {

// A checkpoint of random weights in memory, for benchmarks of models whose files are not there:
// matrices normal with deviation 0.02, norms 1, biases of the router 0. Tensors are slices of one
// pool per type, so that it takes little more memory than the largest tensor, and say which elements of
// random_weights.h they are; a function of config and seed alone, the same on every machine.
StatusOr<std::unique_ptr<Checkpoint>> MakeDummyCheckpoint(const ModelConfig& config, uint64_t seed);

}  // namespace hadal
