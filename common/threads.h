#pragma once

#include <functional>
#include <system_error>
#include <thread>
#include <vector>

namespace hadal {

// Runs `work` on `count` threads, of which the caller is one, and returns when all have ended. Where the
// system gives fewer, those that there are go on. REQUIRES: each run of `work` takes of a common supply
// until none is left, and throws nothing.
inline void RunOnThreads(int count, const std::function<void()>& work) {
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(count));
  try {
    for (int i = 1; i < count; ++i) others.emplace_back(work);
  } catch (const std::system_error&) {
  }
  work();
  for (std::thread& thread : others) thread.join();
}

}  // namespace hadal
