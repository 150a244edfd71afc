#pragma once

#include "kernels/backend.h"

namespace hadal::cuda {

// Bound of the scratch of Route().
int64_t RouteScratchBytes(const OpLimits& limits);

}  // namespace hadal::cuda
