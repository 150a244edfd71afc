#pragma once

#include <cstdint>
#include <string>

#include "common/status.h"
#include "worker/comm/communicator.h"
#include "worker/runtime/plan_channel.h"
#include "worker/runtime/step_runner.h"

namespace hadal {

// Rank 0 of the world: runs the plans of one epoch, handing each plan's bytes to all ranks, until the
// server ends the stream; returns why it ended. Throws CommError, or std::runtime_error for a plan
// that cannot be run: the group must then be ended.
Status LeadEpoch(PlanChannel* channel, StepRunner* runner, Communicator* world);

// Tells the other ranks that no epoch follows.
void EndFollowers(Communicator* world);

// Every other rank: runs what rank 0 hands out, over all epochs, until EndFollowers.
void FollowPlans(StepRunner* runner, Communicator* world);

}  // namespace hadal
