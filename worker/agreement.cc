#include "worker/agreement.h"

#include <algorithm>
#include <vector>

namespace hadal {

Status Agree(const Status& own, HostCommunicator* world) {
  const int32_t failed = own.ok() ? 0 : 1;
  std::vector<int32_t> all(world->size());
  world->AllGather(&failed, all.data(), sizeof(failed));
  if (!own.ok()) return own;
  const auto first = std::find(all.begin(), all.end(), 1);
  if (first == all.end()) return OkStatus();
  return FailedPrecondition("rank {} could not start", first - all.begin());
}

}  // namespace hadal
