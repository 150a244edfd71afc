#include "kernels/cpu/thread_pool.h"

#include <immintrin.h>

#include <algorithm>

#include "common/check.h"

namespace hadal {
namespace {

constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kInside = kOpen - 1;
// About 20 microseconds: longer than the gap between two ops of a step, too short to matter idle.
constexpr int kSpins = 400;

}  // namespace

ThreadPool::ThreadPool(int threads) {
  HADAL_CHECK(threads >= 1, "a pool of {} threads", threads);
  workers_.reserve(static_cast<size_t>(threads) - 1);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { WorkerMain(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  posted_.fetch_add(1);
  posted_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::RunChunks(int thread) {
  for (;;) {
    const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= n_) return;
    fn_(context_, begin, std::min(begin + grain_, n_), thread);
  }
}

void ThreadPool::Run(int64_t n, int64_t grain, ChunkFn fn, void* context) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (workers_.empty() || n <= grain) {
    for (int64_t begin = 0; begin < n; begin += grain) {
      fn(context, begin, std::min(begin + grain, n), 0);
    }
    return;
  }
  fn_ = fn;
  context_ = context;
  n_ = n;
  grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
  const uint64_t job = uint64_t{posted_.load(std::memory_order_relaxed)} + 1;
  state_.store(job << 32 | kOpen, std::memory_order_release);
  posted_.fetch_add(1);
  posted_.notify_all();

  RunChunks(0);

  // Workers that have not woken yet find the job closed, so nobody waits for a sleeper.
  if ((state_.fetch_and(~kOpen) & kInside) == 0) return;
  for (int spin = 0; spin < kSpins; ++spin) {
    if ((state_.load(std::memory_order_acquire) & kInside) == 0) return;
    _mm_pause();
  }
  for (;;) {
    const uint32_t done = done_.load();
    if ((state_.load() & kInside) == 0) return;
    done_.wait(done);
  }
}

bool ThreadPool::TryEnter(uint32_t* seen) {
  uint64_t state = state_.load(std::memory_order_acquire);
  while ((state & kOpen) != 0 && static_cast<uint32_t>(state >> 32) != *seen) {
    if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) {
      *seen = static_cast<uint32_t>(state >> 32);
      return true;
    }
  }
  return false;
}

void ThreadPool::WorkerMain(int thread) {
  uint32_t seen = 0;
  for (;;) {
    const uint32_t posted = posted_.load();
    if (stop_.load()) return;
    if (TryEnter(&seen)) {
      RunChunks(thread);
      const uint64_t left = state_.fetch_sub(1, std::memory_order_acq_rel) - 1;
      if ((left & (kOpen | kInside)) == 0) {
        done_.fetch_add(1);
        done_.notify_one();
      }
    }
    bool changed = false;
    for (int spin = 0; spin < kSpins && !changed; ++spin) {
      changed = posted_.load(std::memory_order_acquire) != posted;
      if (!changed) _mm_pause();
    }
    if (!changed) posted_.wait(posted);
  }
}

}  // namespace hadal
