#pragma once

#include <cstdint>

namespace hadal {

// Bytes that this process may still take: what the host has available, less where a control group
// limits it.
int64_t AvailableHostMemory();

}  // namespace hadal
