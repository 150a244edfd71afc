#pragma once

#include <string_view>
#include <vector>

#include "common/status.h"
#include "kernels/cpu/cpu_backend.h"

namespace hadal {

// True when `isa` is one of SupportedCpuIsas().
bool IsSupported(CpuIsa isa);
// The supported instruction set of that name; "" means the best. INVALID_ARGUMENT lists the names.
StatusOr<CpuIsa> ParseCpuIsa(std::string_view name);

}  // namespace hadal
