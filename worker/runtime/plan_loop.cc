#include "worker/runtime/plan_loop.h"

#include <chrono>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "proto/step_plan_codec.h"

namespace hadal {
namespace {

// First byte of what rank 0 broadcasts.
enum Frame : uint8_t { kPlanFrame = 'P', kCollectFrame = 'C', kResetFrame = 'R', kExitFrame = 'X' };

// How long rank 0 sleeps at most between looks at a running step and at the plan channel.
constexpr std::chrono::microseconds kPatience(20);

void Send(Frame kind, const void* body, size_t bytes, HostCommunicator* world) {
  std::vector<uint8_t> frame(1 + bytes);
  frame[0] = kind;
  if (bytes > 0) std::memcpy(frame.data() + 1, body, bytes);
  world->BroadcastMessage(&frame, 0);
}

void LaunchPlan(std::span<const uint8_t> bytes, StepRunner* runner) {
  StatusOr<StepPlan> plan = DecodeStepPlan(bytes);
  if (!plan.ok()) throw std::runtime_error(plan.status().message());
  const Status status = runner->Launch(*plan);
  if (!status.ok()) {
    throw std::runtime_error(fmt::format("step {}: {}", plan->step, status.message()));
  }
}

StepResult CollectResult(StepRunner* runner) {
  StatusOr<StepResult> result = runner->Collect();
  if (!result.ok()) throw std::runtime_error(result.status().message());
  return std::move(result).value();
}

// Whether the next thing to do is to collect: a finished step comes first, since its result lets the
// server plan the next but one. Waits while a step runs and no plan has come.
bool CollectsNext(PlanChannel* channel, StepRunner* runner) {
  while (runner->in_flight() > 0) {
    if (runner->in_flight() == StepRunner::kMaxInFlight || runner->OldestDone()) return true;
    if (channel->WaitForPlan(kPatience)) return false;
  }
  return false;
}

}  // namespace

Status LeadEpoch(PlanChannel* channel, StepRunner* runner, HostCommunicator* world,
                 bool all_collect) {
  const int32_t vocab_limit = channel->vocab_limit();
  Send(kResetFrame, &vocab_limit, sizeof(vocab_limit), world);
  runner->Reset(vocab_limit);
  for (;;) {
    if (CollectsNext(channel, runner)) {
      if (all_collect) Send(kCollectFrame, nullptr, 0, world);
      channel->SendResult(EncodeStepResult(CollectResult(runner)));
      continue;
    }
    const std::optional<std::string> plan = channel->NextPlan();
    if (!plan) return channel->status();
    Send(kPlanFrame, plan->data(), plan->size(), world);
    LaunchPlan({reinterpret_cast<const uint8_t*>(plan->data()), plan->size()}, runner);
  }
}

void EndFollowers(HostCommunicator* world) { Send(kExitFrame, nullptr, 0, world); }

void FollowPlans(StepRunner* runner, HostCommunicator* world) {
  std::vector<uint8_t> frame;
  for (;;) {
    world->BroadcastMessage(&frame, 0);
    HADAL_CHECK(!frame.empty());
    const std::span<const uint8_t> body(frame.data() + 1, frame.size() - 1);
    if (frame[0] == kExitFrame) return;
    if (frame[0] == kPlanFrame) {
      LaunchPlan(body, runner);
      continue;
    }
    if (frame[0] == kCollectFrame) {
      CollectResult(runner);
      continue;
    }
    int32_t vocab_limit = 0;
    HADAL_CHECK(frame[0] == kResetFrame && body.size() == sizeof(vocab_limit));
    std::memcpy(&vocab_limit, body.data(), sizeof(vocab_limit));
    runner->Reset(vocab_limit);
  }
}

}  // namespace hadal
