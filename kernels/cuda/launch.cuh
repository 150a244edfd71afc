#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_context.h"

// Before Hopper a kernel starts when the one before it has ended, and has nothing to wait for.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define cudaGridDependencySynchronize() static_cast<void>(0)
#define cudaTriggerProgrammaticLaunchCompletion() static_cast<void>(0)
#endif

namespace hadal {

// Launches on context.stream; on Hopper so that the kernel may start while the one before it runs.
// REQUIRES: the kernel calls cudaGridDependencySynchronize() before it touches anything that an
// earlier kernel writes, and before it writes anything that an earlier kernel may still read.
template <typename... K, typename... A>
void Launch(void (*kernel)(K...), dim3 grid, dim3 block, size_t shared_bytes,
            CudaContext& context, A... args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = context.stream;
  config.attrs = &attribute;
  config.numAttrs = context.arch >= 90 ? 1 : 0;
  HADAL_CUDA(cudaLaunchKernelEx(&config, kernel, static_cast<K>(args)...));
}

}  // namespace hadal
