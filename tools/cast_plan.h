#pragma once

#include <string>

#include "common/status.h"
#include "tools/output_plan.h"

namespace hadal {

// Casts keep the source's shards and their names; whatever else stands in the source directory is
// copied, hidden files apart. Scales are found in whichever shard they are.

// e4m3 matrices times their scales become bf16. FAILED_PRECONDITION lists every matrix without
// scales and all scales that do not fit.
StatusOr<OutputPlan> PlanCastToBf16(const std::string& source_dir, const std::string& directory);

// The matrices that FP8 releases quantise (attention and MLP projections, experts, those of MTP
// layers) become e4m3 with 128 x 128 scales, powers of two if asked for.
StatusOr<OutputPlan> PlanCastToF8E4M3(const std::string& source_dir, const std::string& directory,
                                      bool power_of_two);

}  // namespace hadal
