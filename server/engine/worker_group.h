#pragma once

#include <cstdint>

#include "common/status.h"
#include "common/step_plan.h"

namespace hadal {

// One group of worker ranks that has joined: the shipped one speaks gRPC, tests and the simulator
// bring their own. Results and the end of the group are reported to Engine.
class WorkerGroup {
 public:
  virtual ~WorkerGroup() = default;
  virtual const GroupCapacity& capacity() const = 0;
  // Engine thread; never blocks. At most two plans are in flight.
  virtual void Submit(const StepPlan& plan) = 0;
  // Engine thread; ends the group, telling it why. No result arrives afterwards.
  virtual void Close(const Status& reason) = 0;
};

}  // namespace hadal
