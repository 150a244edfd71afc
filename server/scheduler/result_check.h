#pragma once

#include <cstdint>
#include <vector>

#include "common/status.h"
#include "common/step_plan.h"

namespace hadal {

// What is remembered of a plan until its result arrives.
struct PlanInFlight {
  struct Group {
    std::vector<PlanRow> rows;
    std::vector<uint64_t> owners;  // [rows] Sequence::order
  };
  uint64_t epoch = 0;
  uint64_t step = 0;
  std::vector<Group> groups;  // [data_parallel]
  bool decoding = false;      // some row is a running stream's next token
  int32_t prompt_tokens = 0;  // prompt or recomputed tokens, the most in any group
};

// OK when `result` answers exactly `plan` with ids below `vocab_limit`. Workers are another process,
// possibly of another version: whatever they send must not be able to crash or confuse the server.
Status CheckResult(const PlanInFlight& plan, const StepResult& result, int32_t vocab_limit);

}  // namespace hadal
