#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace hadal {

// Runs loops on a fixed number of threads, the caller among them. A worker without work spins for a
// few microseconds and then blocks, so an idle pool uses no CPU.
//
// A loop over n items is cut into chunks of `grain` items, whatever the number of threads: an op
// that is deterministic per chunk is deterministic on any pool.
class ThreadPool {
 public:
  // REQUIRES: threads >= 1. Starts threads - 1 workers.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(int64_t begin, int64_t end, int thread) for every chunk, thread in [0, size()), and
  // returns when all have returned. The caller is thread 0 and one chunk at most runs per thread at
  // a time. fn must not throw. REQUIRES: called from one thread at a time, not from inside fn.
  template <typename Fn>
  void ParallelFor(int64_t n, int64_t grain, Fn&& fn) {
    using F = std::remove_reference_t<Fn>;
    Run(n, grain, [](void* f, int64_t begin, int64_t end, int thread) {
      (*static_cast<F*>(f))(begin, end, thread);
    }, const_cast<void*>(static_cast<const void*>(&fn)));
  }

 private:
  using ChunkFn = void (*)(void* context, int64_t begin, int64_t end, int thread);

  void Run(int64_t n, int64_t grain, ChunkFn fn, void* context);
  void RunChunks(int thread);
  void WorkerMain(int thread);
  // Joins the open job, if there is one newer than *seen.
  bool TryEnter(uint32_t* seen);

  // The job being run. Written by the caller while the job is closed and no worker is inside.
  ChunkFn fn_ = nullptr;
  void* context_ = nullptr;
  int64_t n_ = 0;
  int64_t grain_ = 1;
  alignas(64) std::atomic<int64_t> next_{0};  // first item that nobody has taken
  // Bits 32..63: number of the job; bit 31: open; below: workers inside.
  alignas(64) std::atomic<uint64_t> state_{0};
  // Counts jobs, and is what idle workers wait on.
  alignas(64) std::atomic<uint32_t> posted_{0};
  std::atomic<uint32_t> done_{0};  // bumped by the last worker that leaves a closed job
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace hadal
