#include "kernels/cpu/thread_pool.h"

#include <time.h>

#include <atomic>
#include <chrono>
#include <vector>

#include "tests/support/catch.h"

namespace hadal {
namespace {

TEST_CASE("a parallel loop visits every item once, in chunks that do not depend on the threads") {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    CHECK(pool.size() == threads);
    for (const int64_t n : {0, 1, 7, 64, 1000}) {
      for (const int64_t grain : {1, 3, 64, 5000}) {
        std::vector<std::atomic<int>> visits(static_cast<size_t>(n));
        std::atomic<int> bad{0};
        pool.ParallelFor(n, grain, [&](int64_t begin, int64_t end, int thread) {
          if (begin % grain != 0 || (end != n && end != begin + grain)) ++bad;
          if (thread < 0 || thread >= threads) ++bad;
          for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
        });
        CHECK(bad == 0);
        for (const auto& v : visits) CHECK(v == 1);
      }
    }
  }
}

TEST_CASE("many short loops in a row see each other's results") {
  ThreadPool pool(3);
  std::vector<int64_t> values(32, 0);
  for (int round = 0; round < 20000; ++round) {
    pool.ParallelFor(32, 1, [&](int64_t begin, int64_t, int) {
      ++values[static_cast<size_t>(begin)];
    });
  }
  for (const int64_t v : values) CHECK(v == 20000);
}

TEST_CASE("one thread number is never used twice at a time") {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> inside(4);
  std::atomic<int> clashes{0};
  for (int round = 0; round < 200; ++round) {
    pool.ParallelFor(40, 1, [&](int64_t, int64_t, int thread) {
      if (inside[static_cast<size_t>(thread)].fetch_add(1) != 0) ++clashes;
      inside[static_cast<size_t>(thread)].fetch_sub(1);
    });
  }
  CHECK(clashes == 0);
}

TEST_CASE("an idle pool uses no CPU") {
  const auto cpu_seconds = [] {
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
  };
  ThreadPool pool(4);
  pool.ParallelFor(100, 1, [](int64_t, int64_t, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  CHECK(cpu_seconds() - before < 0.01);
}

}  // namespace
}  // namespace hadal
