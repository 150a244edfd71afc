#pragma once

#include <vector>

#include "common/layout.h"
#include "common/model_config.h"
#include "kernels/backend.h"

namespace hadal {

// The shape of a step of one D group; the others have the same.
struct StepShape {
  bool fixed_exchange = false;       // as in ModelOptions
  std::vector<int> decode_contexts;  // tokens that each decode row attends to, its own included
  struct Prefill {
    int start_pos = 0;
    int num_tokens = 0;
  };
  std::vector<Prefill> prefill;
};

// What one rank must read and compute, whatever the implementation: every weight that the step uses
// once (routed experts by the number expected to be chosen under even routing), the latent cache that
// is attended to, and the products' multiply-adds counted as two.
struct StepCost {
  double bytes = 0;
  double flops = 0;
};
StepCost CountStep(const ModelConfig& config, const Layout& layout, const Backend& backend,
                   const StepShape& shape);

}  // namespace hadal
