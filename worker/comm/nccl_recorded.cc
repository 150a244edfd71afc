#include "worker/comm/nccl_recorded.h"

#include <fmt/format.h>

#include <stdexcept>

namespace hadal {
namespace {

// Of steps of up to 8,192 tokens there are 128 sizes, each with a sum of the residual and one of what
// is added to it.
constexpr size_t kMaxGraphs = 512;

void Check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(fmt::format("{}: {}", call, cudaGetErrorString(error)));
}

}  // namespace

void RecordedCollectives::Clear() noexcept {
  for (const auto& [key, graph] : graphs_) cudaGraphExecDestroy(graph);
  graphs_.clear();
}

cudaGraphExec_t RecordedCollectives::Record(cudaStream_t stream,
                                            const std::function<void()>& enqueue) {
  // Relaxed: NCCL may allocate meanwhile.
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
  cudaGraph_t captured = nullptr;
  try {
    enqueue();
  } catch (...) {
    cudaStreamEndCapture(stream, &captured);
    if (captured != nullptr) cudaGraphDestroy(captured);
    cudaGetLastError();
    throw;
  }
  Check(cudaStreamEndCapture(stream, &captured), "cudaStreamEndCapture");
  cudaGraphExec_t graph = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&graph, captured, 0);
  cudaGraphDestroy(captured);
  Check(error, "cudaGraphInstantiate");
  return graph;
}

void RecordedCollectives::Run(cudaStream_t stream, const Key& key,
                              const std::function<void()>& enqueue) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  Check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  if (status != cudaStreamCaptureStatusNone) return enqueue();
  auto found = graphs_.find(key);
  if (found == graphs_.end()) {
    if (graphs_.size() >= kMaxGraphs) return enqueue();
    found = graphs_.emplace(key, Record(stream, enqueue)).first;
  }
  Check(cudaGraphLaunch(found->second, stream), "cudaGraphLaunch");
}

}  // namespace hadal
