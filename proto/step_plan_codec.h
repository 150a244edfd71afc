#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "common/status.h"
#include "common/step_plan.h"

namespace hadal {

// The wire form of common/step_plan.h (hadal/v1/worker.proto). Decoding checks what the bytes alone
// can tell (enums, counts that belong together, signs) and returns INVALID_ARGUMENT; whether slots
// and blocks exist is for the receiver to check.
std::string EncodeStepPlan(const StepPlan& plan);
StatusOr<StepPlan> DecodeStepPlan(std::span<const uint8_t> bytes);
std::string EncodeStepResult(const StepResult& result);
StatusOr<StepResult> DecodeStepResult(std::span<const uint8_t> bytes);
std::string EncodeGroupResult(const GroupResult& result);
StatusOr<GroupResult> DecodeGroupResult(std::span<const uint8_t> bytes);

}  // namespace hadal
