#pragma once

#include <cstdint>
#include <string>

namespace hadal {

// Bytes that this process may still take: what the host has available, less where a control group
// limits it. Files that the system caches count as available. `root` is where /proc and /sys are.
int64_t AvailableHostMemory(const std::string& root = "");

}  // namespace hadal
