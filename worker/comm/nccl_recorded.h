#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <map>
#include <tuple>

#include "common/dtype.h"

namespace hadal {

// Collectives outside of a step's graph, each as a CUDA graph of its own. Starting one on a
// non-blocking communicator takes NCCL a thread and the caller a wait for it, some 70 us; a graph
// that holds it, a tenth. One thread.
class RecordedCollectives {
 public:
  // What a collective is told by: the operand's address, its elements, their type.
  using Key = std::tuple<const void*, int64_t, DType>;

  RecordedCollectives() = default;
  ~RecordedCollectives() { Clear(); }
  RecordedCollectives(const RecordedCollectives&) = delete;
  RecordedCollectives& operator=(const RecordedCollectives&) = delete;

  // `enqueue` puts the collective of `key` on the stream, which is always the same. It is called the
  // first time only; while the stream is captured already, or when enough are kept, every time. What it
  // throws passes through.
  void Run(cudaStream_t stream, const Key& key, const std::function<void()>& enqueue);
  // Forgets all; those that run go on. NCCL does not give up a communicator before that.
  void Clear() noexcept;

 private:
  static cudaGraphExec_t Record(cudaStream_t stream, const std::function<void()>& enqueue);

  std::map<Key, cudaGraphExec_t> graphs_;
};

}  // namespace hadal
