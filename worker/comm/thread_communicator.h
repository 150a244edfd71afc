#pragma once

#include <vector>

#include "worker/comm/communicator.h"

namespace hadal {

// Ranks as threads of one process, for tests: result [r] belongs to the thread of world rank r. The
// collectives are those of the shipped communicators, over shared memory. A peer that does not come
// within timeout_s makes the others throw CommError::kTimeout.
std::vector<CommGroup> MakeThreadCommGroups(int tensor_parallel, int data_parallel,
                                            double timeout_s = 60);

}  // namespace hadal
