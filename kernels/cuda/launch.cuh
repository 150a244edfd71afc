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

// Launches on context.stream; on Hopper so that the kernel may start while the one before it runs,
// and with `cluster` blocks of neighbouring x as a cluster.
// REQUIRES: the kernel calls cudaGridDependencySynchronize() before it touches anything that an
// earlier kernel writes, and before it writes anything that an earlier kernel may still read.
template <typename... K, typename... A>
void LaunchClusters(void (*kernel)(K...), dim3 grid, int cluster, dim3 block, size_t shared_bytes,
                    CudaContext& context, A... args) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = static_cast<unsigned>(cluster);
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = context.stream;
  config.attrs = attributes;
  config.numAttrs = context.arch < 90 ? 0 : cluster > 1 ? 2 : 1;
  HADAL_CUDA(cudaLaunchKernelEx(&config, kernel, static_cast<K>(args)...));
}
template <typename... K, typename... A>
void Launch(void (*kernel)(K...), dim3 grid, dim3 block, size_t shared_bytes, CudaContext& context,
            A... args) {
  LaunchClusters(kernel, grid, 1, block, shared_bytes, context, args...);
}

}  // namespace hadal
