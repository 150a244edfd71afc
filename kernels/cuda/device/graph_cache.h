#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <unordered_map>

namespace hadal {

// The CUDA graphs behind Backend::Replay(). One thread.
class GraphCache {
 public:
  // The stream must outlive this object.
  explicit GraphCache(cudaStream_t stream) : stream_(stream) {}
  ~GraphCache();
  GraphCache(const GraphCache&) = delete;
  GraphCache& operator=(const GraphCache&) = delete;

  // Key 0 runs `ops`. Another key captures them the first time (they run once, as a graph) and
  // later launches that graph without calling `ops`. What `ops` throws passes through; nothing is
  // kept then.
  void Replay(uint64_t key, const std::function<void()>& ops);

 private:
  cudaGraphExec_t Capture(uint64_t key, const std::function<void()>& ops);

  cudaStream_t stream_;
  std::unordered_map<uint64_t, cudaGraphExec_t> graphs_;
};

}  // namespace hadal
