#pragma once

#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "common/model_config.h"

namespace hadal {

// [tokens, top_k] experts of random tokens, without preference and none twice.
inline std::vector<int32_t> DrawExperts(const ModelConfig& config, int tokens, std::mt19937* rng) {
  std::vector<int32_t> all(config.n_routed_experts), ids;
  for (size_t e = 0; e < all.size(); ++e) all[e] = static_cast<int32_t>(e);
  for (int t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < config.n_activated_experts; ++j) {
      std::uniform_int_distribution<size_t> later(static_cast<size_t>(j), all.size() - 1);
      std::swap(all[static_cast<size_t>(j)], all[later(*rng)]);
      ids.push_back(all[static_cast<size_t>(j)]);
    }
  }
  return ids;
}

}  // namespace hadal
