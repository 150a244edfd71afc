#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/device/cuda_check.h"
#include "kernels/cuda/device/cuda_context.h"

namespace hadal {

// Kernels of up to so many blocks a multiprocessor leave as much shared memory as there is, for one
// that has to change that cannot start a kernel beside another. Larger ones gain more by the cache.
constexpr int64_t kBlocksOfOneCarveout = 8;

// Launches on context.stream; on Hopper so that the kernel may start while the one before it runs,
// and with `cluster` blocks of neighbouring x as a cluster.
// REQUIRES: the kernel calls cuda::WaitForPrevious() before it touches anything that an
// earlier kernel writes, and before it writes anything that an earlier kernel may still read.
template <typename... K, typename... A>
void LaunchClusters(void (*kernel)(K...), dim3 grid, int cluster, dim3 block, size_t shared_bytes,
                    CudaContext& context, A... args) {
  cudaLaunchAttribute attributes[3] = {};
  unsigned count = 0;
  attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(cluster);
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
#if CUDART_VERSION >= 13000  // built by an older toolkit, fewer kernels overlap
  if (int64_t{grid.x} * grid.y * grid.z <= kBlocksOfOneCarveout * context.sm_count) {
    attributes[count].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attributes[count++].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  }
#endif
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = context.stream;
  config.attrs = attributes;
  config.numAttrs = context.arch < 90 ? 0 : count;
  HADAL_CUDA(cudaLaunchKernelEx(&config, kernel, static_cast<K>(args)...));
}
template <typename... K, typename... A>
void Launch(void (*kernel)(K...), dim3 grid, dim3 block, size_t shared_bytes, CudaContext& context,
            A... args) {
  LaunchClusters(kernel, grid, 1, block, shared_bytes, context, args...);
}

}  // namespace hadal

namespace hadal::cuda {

// Before Hopper a kernel starts when the one before it has ended: there is nothing to wait for.

// Returns when all earlier kernels of the stream have completed and their writes are visible.
__device__ __forceinline__ void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// Lets the next kernel's blocks start where there is room; they still wait for this kernel's end.
__device__ __forceinline__ void AllowNext() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

}  // namespace hadal::cuda
