#include "common/host_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace hadal {
namespace {

std::optional<int64_t> MeminfoBytes(const std::string& field) {
  std::ifstream in("/proc/meminfo");
  std::string name;
  int64_t kib = 0;
  std::string rest;
  while (in >> name >> kib && std::getline(in, rest)) {
    if (name == field + ":") return kib * 1024;
  }
  return std::nullopt;
}

std::optional<int64_t> ReadNumber(const std::string& path) {
  std::ifstream in(path);
  int64_t value = 0;
  if (in >> value) return value;
  return std::nullopt;
}

// What the control group of version 2 leaves; unset without a limit.
std::optional<int64_t> CgroupAvailable() {
  const auto limit = ReadNumber("/sys/fs/cgroup/memory.max");
  const auto used = ReadNumber("/sys/fs/cgroup/memory.current");
  if (!limit || !used) return std::nullopt;
  return std::max<int64_t>(*limit - *used, 0);
}

}  // namespace

int64_t AvailableHostMemory() {
  int64_t available =
      MeminfoBytes("MemAvailable").value_or(std::numeric_limits<int64_t>::max() / 2);
  if (const auto cgroup = CgroupAvailable()) available = std::min(available, *cgroup);
  return available;
}

}  // namespace hadal
