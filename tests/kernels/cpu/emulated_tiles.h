#pragma once

#include "kernels/cpu/gemm_kernel.h"

namespace hadal::testing {

// The AMX kernel over emulated tiles: its logic runs on any machine. Put it into CpuContext::gemm.
extern const GemmKernels kGemmEmulatedTiles;

}  // namespace hadal::testing
