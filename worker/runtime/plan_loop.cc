#include "worker/runtime/plan_loop.h"

#include <cstring>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "proto/step_plan_codec.h"

namespace hadal {
namespace {

// First byte of what rank 0 broadcasts.
enum Frame : uint8_t { kPlanFrame = 'P', kResetFrame = 'R', kExitFrame = 'X' };

void Send(Frame kind, const void* body, size_t bytes, Communicator* world) {
  std::vector<uint8_t> frame(1 + bytes);
  frame[0] = kind;
  if (bytes > 0) std::memcpy(frame.data() + 1, body, bytes);
  world->BroadcastMessage(&frame, 0);
}

StepResult RunPlan(std::span<const uint8_t> bytes, StepRunner* runner) {
  StatusOr<StepPlan> plan = DecodeStepPlan(bytes);
  if (!plan.ok()) throw std::runtime_error(plan.status().message());
  StatusOr<StepResult> result = runner->Run(*plan);
  if (!result.ok()) {
    throw std::runtime_error(fmt::format("step {}: {}", plan->step, result.status().message()));
  }
  return std::move(result).value();
}

}  // namespace

Status LeadEpoch(PlanChannel* channel, StepRunner* runner, Communicator* world) {
  const int32_t vocab_limit = channel->vocab_limit();
  runner->Reset(vocab_limit);
  Send(kResetFrame, &vocab_limit, sizeof(vocab_limit), world);
  while (std::optional<std::string> plan = channel->NextPlan()) {
    Send(kPlanFrame, plan->data(), plan->size(), world);
    const auto* bytes = reinterpret_cast<const uint8_t*>(plan->data());
    channel->SendResult(EncodeStepResult(RunPlan({bytes, plan->size()}, runner)));
  }
  return channel->status();
}

void EndFollowers(Communicator* world) { Send(kExitFrame, nullptr, 0, world); }

void FollowPlans(StepRunner* runner, Communicator* world) {
  std::vector<uint8_t> frame;
  for (;;) {
    world->BroadcastMessage(&frame, 0);
    HADAL_CHECK(!frame.empty());
    const std::span<const uint8_t> body(frame.data() + 1, frame.size() - 1);
    if (frame[0] == kExitFrame) return;
    if (frame[0] == kPlanFrame) {
      RunPlan(body, runner);
      continue;
    }
    int32_t vocab_limit = 0;
    HADAL_CHECK(frame[0] == kResetFrame && body.size() == sizeof(vocab_limit));
    std::memcpy(&vocab_limit, body.data(), sizeof(vocab_limit));
    runner->Reset(vocab_limit);
  }
}

}  // namespace hadal
