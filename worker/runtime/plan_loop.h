#pragma once

#include <cstdint>
#include <string>

#include "common/status.h"
#include "worker/comm/communicator.h"
#include "worker/runtime/plan_channel.h"
#include "worker/runtime/step_runner.h"

namespace hadal {

// Rank 0 of the world: runs the plans of one epoch, handing each plan's bytes to all ranks, until the
// server ends the stream; returns why it ended. `all_collect`: the other ranks have a part in results
// (D > 1). Throws CommError, or std::runtime_error for a plan that cannot be run or a step that
// failed: the group must then be ended.
Status LeadEpoch(PlanChannel* channel, StepRunner* runner, HostCommunicator* world,
                 bool all_collect);

// Tells the other ranks that no epoch follows.
void EndFollowers(HostCommunicator* world);

// Every other rank: runs what rank 0 hands out, over all epochs, until EndFollowers.
void FollowPlans(StepRunner* runner, HostCommunicator* world);

}  // namespace hadal
