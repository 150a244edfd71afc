#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

namespace hadal {

// "1.50 GiB".
std::string ByteText(uint64_t bytes);

// Counts bytes from all threads and says now and then how far the run is.
class Progress {
 public:
  Progress(uint64_t total, std::function<void(const std::string&)> report)
      : total_(total), report_(std::move(report)) {}

  // At most every two seconds this reports bytes, rate and time left. Thread-safe.
  void Add(uint64_t bytes);
  double seconds() const;
  uint64_t done() const { return done_; }

 private:
  using Clock = std::chrono::steady_clock;

  const uint64_t total_;
  const std::function<void(const std::string&)> report_;
  const Clock::time_point start_ = Clock::now();
  std::atomic<uint64_t> done_ = 0;
  std::mutex mutex_;
  Clock::time_point last_report_ = start_;  // guarded by mutex_
};

}  // namespace hadal
