#pragma once

#include <vector>

#include "kernels/cuda/device/cuda_context.h"
#include "kernels/cuda/weights/packed_weight.h"

namespace hadal {

// Whether all elements can be made on the device.
bool AllRandom(const std::vector<StackedSource>& matrices);

// Makes the elements of w, zeros behind each row included; scales are left to others. Returns when
// they are there: ops read weights before they wait for the kernel in front of them. REQUIRES:
// AllRandom(matrices); w has their shape, and memory.
void FillRandom(const std::vector<StackedSource>& matrices, const CudaPackedWeight& w,
                CudaContext& context);

}  // namespace hadal
