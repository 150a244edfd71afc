#pragma once

#include <string>
#include <utility>
#include <vector>

#include "common/status.h"
#include "worker/comm/communicator.h"

namespace hadal {

// The same verdict on every rank: OK, or the error of the lowest rank that has one (others only learn
// that there is one).
Status Agree(const Status& own, HostCommunicator* world);

// What a rank was started with that all ranks must have alike: names and values.
using StartFacts = std::vector<std::pair<std::string, std::string>>;

// The same on every rank: FAILED_PRECONDITION naming each rank whose facts are not those of rank 0, and
// what differs. REQUIRES: the same names in the same order everywhere.
Status AgreeOnFacts(const StartFacts& own, HostCommunicator* world);

}  // namespace hadal
