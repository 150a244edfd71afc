#include "worker/cores.h"

#include <algorithm>

namespace hadal {

cpu_set_t CoresOf(int process) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(process, sizeof(set), &set) != 0) CPU_ZERO(&set);
  return set;
}

int ThreadsOfRank(std::span<const cpu_set_t> masks, int own) {
  int sharers = 0;
  for (const cpu_set_t& mask : masks) {
    cpu_set_t common;
    CPU_AND(&common, &mask, &masks[own]);
    if (CPU_COUNT(&common) > 0) ++sharers;
  }
  return sharers == 0 ? 1 : std::max(1, CPU_COUNT(&masks[own]) / sharers);
}

bool BoundTooTightly(std::span<const cpu_set_t> masks, int own, const cpu_set_t& host) {
  const int part = CPU_COUNT(&host) / static_cast<int>(masks.size());
  return CPU_COUNT(&masks[own]) < part;
}

}  // namespace hadal
