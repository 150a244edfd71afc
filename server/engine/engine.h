#pragma once

#include <cstdint>
#include <limits>
#include <memory>

#include "common/clock.h"
#include "common/status.h"
#include "server/engine/worker_group.h"
#include "server/scheduler/request.h"

namespace hadal {

// Receives the events of one request. Called on the engine thread; must not block and must not call
// back into the engine.
class RequestSink {
 public:
  virtual ~RequestSink() = default;
  virtual void OnEvent(RequestEvent event) = 0;
};

struct EngineOptions {
  int32_t max_waiting_requests = 1024;       // admitted but not yet scheduled; more are refused
  int64_t max_waiting_tokens = 1 << 20;      // their prompts' tokens together
  // Prompt and decode tokens of one step and D group, if the workers take as many.
  int32_t step_token_budget = std::numeric_limits<int32_t>::max();
  int32_t vocab_limit = std::numeric_limits<int32_t>::max();  // workers draw ids below it
  int64_t step_deadline_us = 120'000'000;    // a plan unanswered for longer ends its group
};

struct EngineStats {
  bool ready = false;              // a group has joined and answers, and requests are taken
  bool draining = false;
  uint64_t epoch = 0;              // of the joined group, 0: none
  GroupCapacity capacity;
  int32_t running = 0;
  int32_t waiting = 0;
  int64_t free_blocks = 0;         // over all D groups
  int64_t total_blocks = 0;
  uint64_t generated_tokens = 0;
  uint64_t steps = 0;
};

// The one engine thread: owns every live request, the scheduler, the block pools. Everything below
// except RunOnce may be called from any thread and returns at once.
class Engine {
 public:
  virtual ~Engine() = default;

  // A fresh id. 
  virtual uint64_t NextRequestId() = 0;
  // RESOURCE_EXHAUSTED when the waiting queue is full, UNAVAILABLE while draining; otherwise the
  // sink will see events until one has `finish`.
  virtual Status Submit(Request request, std::shared_ptr<RequestSink> sink) = 0;
  // The request's blocks are free within one step; its sink gets no event any more.
  virtual void Cancel(uint64_t id) = 0;

  // The epoch of the new group. ABORTED while another group is joined: worth trying again;
  // FAILED_PRECONDITION for another model than the former groups'.
  virtual StatusOr<uint64_t> Join(std::shared_ptr<WorkerGroup> group) = 0;
  virtual void OnResult(StepResult result) = 0;
  virtual void OnGroupLost(uint64_t epoch, Status reason) = 0;

  // No new requests from now on; true when none is left.
  virtual void StartDrain() = 0;
  virtual bool Drained() const = 0;

  virtual EngineStats stats() const = 0;

  // One pass: takes what has arrived, schedules, submits, delivers events. Returns the time in
  // microseconds until it wants to run again at the latest. Only for the thread that owns the engine.
  virtual int64_t RunOnce() = 0;
  // Starts and stops the owning thread; tests call RunOnce instead.
  virtual void Start() = 0;
  virtual void Stop() = 0;
};

std::unique_ptr<Engine> MakeEngine(const EngineOptions& options, const Clock* clock);

}  // namespace hadal
