#pragma once

#include "common/status.h"
#include "worker/comm/communicator.h"

namespace hadal {

// The same verdict on every rank: OK, or the error of the lowest rank that has one (others only learn
// that there is one).
Status Agree(const Status& own, HostCommunicator* world);

}  // namespace hadal
