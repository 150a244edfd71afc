#include "kernels/cuda/device/graph_cache.h"

#include <spdlog/spdlog.h>

#include "kernels/cuda/device/cuda_check.h"
#include "kernels/cuda/device/device_memory.h"

namespace hadal {
GraphCache::~GraphCache() {
  cudaStreamSynchronize(stream_);
  for (const auto& [key, graph] : graphs_) cudaGraphExecDestroy(graph);
}

cudaGraphExec_t GraphCache::Capture(uint64_t key, const std::function<void()>& ops) {
  const int64_t free_before = FreeDeviceBytes();
  // Relaxed: the first run of an op may load its kernel or let a library allocate, which the
  // stricter modes forbid. Nothing else works on this stream meanwhile.
  HADAL_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed));
  cudaGraph_t captured = nullptr;
  try {
    ops();
  } catch (...) {
    cudaStreamEndCapture(stream_, &captured);
    if (captured != nullptr) cudaGraphDestroy(captured);
    cudaGetLastError();
    throw;
  }
  HADAL_CUDA(cudaStreamEndCapture(stream_, &captured));
  size_t nodes = 0;
  HADAL_CUDA(cudaGraphGetNodes(captured, nullptr, &nodes));
  cudaGraphExec_t graph = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&graph, captured, 0);
  cudaGraphDestroy(captured);
  HADAL_CUDA(error);
  HADAL_CUDA(cudaGraphUpload(graph, stream_));
  spdlog::debug("graph {:#x}: {} nodes, {} bytes of device memory", key, nodes,
                free_before - FreeDeviceBytes());
  return graph;
}

void GraphCache::Replay(uint64_t key, const std::function<void()>& ops) {
  if (key == 0) return ops();
  auto found = graphs_.find(key);
  if (found == graphs_.end()) found = graphs_.emplace(key, Capture(key, ops)).first;
  HADAL_CUDA(cudaGraphLaunch(found->second, stream_));
}

}  // namespace hadal
