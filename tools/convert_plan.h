#pragma once

#include <string>

#include "common/status.h"
#include "tools/output_plan.h"

namespace hadal {

struct ConvertOptions {
  std::string source_dir;  // Hugging Face
  std::string directory;
  int64_t n_experts = 0;
  int ranks = 0;
};

// The files of converted_checkpoint.h, config.json in the reference's names, and the tokenizer's
// files. INVALID_ARGUMENT for options that do not fit the model, otherwise the source is at fault.
StatusOr<OutputPlan> PlanConversion(const ConvertOptions& options);

}  // namespace hadal
