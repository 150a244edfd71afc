#pragma once

#include <sched.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace hadal {

// Waiting without a wake-up: spin while the answer is probably on its way, then give the core to
// others, then sleep for longer and longer. Call Pause() between polls.
class PollBackoff {
 public:
  // max_sleep_us bounds the delay that sleeping can add.
  explicit PollBackoff(int64_t max_sleep_us) : max_sleep_us_(max_sleep_us) {}

  void Pause() {
    if (polls_ < kSpins + kYields) ++polls_;
    if (polls_ < kSpins) return;
    if (polls_ < kSpins + kYields) {
      sched_yield();
      return;
    }
    timespec delay{0, static_cast<long>(sleep_us_ * 1000)};
    nanosleep(&delay, nullptr);
    sleep_us_ = std::min(sleep_us_ * 2, max_sleep_us_);
  }

  // Counted until sleeping begins.
  int polls() const { return polls_; }
  double ElapsedSeconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  // True every now and then: when it is worth looking at the time.
  bool TimeToCheck() const { return polls_ >= kSpins + kYields || polls_ % 1024 == 0; }

 private:
  static constexpr int kSpins = 200;
  static constexpr int kYields = 3000;
  const int64_t max_sleep_us_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  int64_t sleep_us_ = 20;
  int polls_ = 0;
};

}  // namespace hadal
