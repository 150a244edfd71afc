#pragma once

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace hadal {

// One thread and what waits for it. Any thread may post; posting never blocks.
template <typename Item>
class WorkQueue {
 public:
  // `handle` runs on the queue's thread, in the order of posting.
  WorkQueue(size_t capacity, std::function<void(Item)> handle)
      : capacity_(capacity), handle_(std::move(handle)), thread_([this] { Run(); }) {}
  ~WorkQueue() { Stop(); }
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  // False when `capacity` items wait, or after Stop; the item is then dropped.
  bool Post(Item item) {
    std::lock_guard lock(mutex_);
    if (stopped_ || waiting_.size() >= capacity_) return false;
    waiting_.push_back(std::move(item));
    if (waiting_.size() == 1) wake_.notify_one();
    return true;
  }

  // Handles what waits, then ends the thread. REQUIRES: not called from `handle`.
  void Stop() {
    {
      std::lock_guard lock(mutex_);
      stopped_ = true;
      wake_.notify_one();
    }
    if (thread_.joinable()) thread_.join();
  }

 private:
  void Run() {
    std::vector<Item> items;
    for (;;) {
      items.clear();
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return stopped_ || !waiting_.empty(); });
        if (waiting_.empty()) return;
        items.swap(waiting_);
      }
      for (Item& item : items) handle_(std::move(item));
    }
  }

  const size_t capacity_;
  const std::function<void(Item)> handle_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Item> waiting_;  // guarded by mutex_
  bool stopped_ = false;       // guarded by mutex_
  std::thread thread_;         // last: it uses all of the above
};

}  // namespace hadal
