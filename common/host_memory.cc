#include "common/host_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace hadal {
namespace {

// The number behind `name` in a file of names and numbers, one pair a line.
std::optional<int64_t> ReadField(const std::string& path, const std::string& name) {
  std::ifstream in(path);
  std::string found;
  int64_t value = 0;
  std::string rest;
  while (in >> found >> value && std::getline(in, rest)) {
    if (found == name) return value;
  }
  return std::nullopt;
}

std::optional<int64_t> ReadNumber(const std::string& path) {
  std::ifstream in(path);
  int64_t value = 0;
  if (in >> value) return value;
  return std::nullopt;
}

// The files of one version of control groups. Fields count the group's descendants too.
struct CgroupFiles {
  const char* limit;
  const char* used;
  const char* stat;
  const char* inactive_file;
  const char* active_file;
};
constexpr CgroupFiles kCgroups[] = {
    {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat",
     "inactive_file", "active_file"},
    {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
     "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file", "total_active_file"}};

// What the control group leaves; unset without a limit.
std::optional<int64_t> CgroupAvailable(const std::string& root, const CgroupFiles& files) {
  const auto limit = ReadNumber(root + files.limit);
  const auto used = ReadNumber(root + files.used);
  if (!limit || !used) return std::nullopt;
  // Cached files give way when memory is asked for.
  const int64_t cached = ReadField(root + files.stat, files.inactive_file).value_or(0) +
                         ReadField(root + files.stat, files.active_file).value_or(0);
  return std::max<int64_t>(*limit - std::max<int64_t>(*used - cached, 0), 0);
}

}  // namespace

int64_t AvailableHostMemory(const std::string& root) {
  const auto kib = ReadField(root + "/proc/meminfo", "MemAvailable:");
  int64_t available = kib ? *kib * 1024 : std::numeric_limits<int64_t>::max() / 2;
  for (const CgroupFiles& files : kCgroups) {
    if (const auto cgroup = CgroupAvailable(root, files)) available = std::min(available, *cgroup);
  }
  return available;
}

}  // namespace hadal
