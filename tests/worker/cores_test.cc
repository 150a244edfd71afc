#include "worker/cores.h"

#include <vector>

#include "tests/support/catch.h"

namespace hadal {
namespace {

cpu_set_t Cores(int begin, int end) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int core = begin; core < end; ++core) CPU_SET(core, &set);
  return set;
}

std::vector<int> ThreadsOfAll(const std::vector<cpu_set_t>& masks) {
  std::vector<int> threads;
  for (int i = 0; i < static_cast<int>(masks.size()); ++i)
    threads.push_back(ThreadsOfRank(masks, i));
  return threads;
}

TEST_CASE("ranks divide only the cores that they share") {
  const cpu_set_t host = Cores(0, 32), left = Cores(0, 16), right = Cores(16, 32);
  CHECK(ThreadsOfAll({host, host}) == std::vector{16, 16});
  CHECK(ThreadsOfAll({host, host, host}) == std::vector{10, 10, 10});
  // OpenMPI's own ways: two cores with their hyperthreads, or sockets.
  CHECK(ThreadsOfAll({Cores(0, 2), Cores(2, 4)}) == std::vector{2, 2});
  CHECK(ThreadsOfAll({left, right, left, right}) == std::vector{8, 8, 8, 8});
  CHECK(ThreadsOfAll({left, right, left}) == std::vector{8, 16, 8});
}

TEST_CASE("every rank has a thread") {
  CHECK(ThreadsOfAll({Cores(0, 1), Cores(0, 1)}) == std::vector{1, 1});
  CHECK(ThreadsOfAll({Cores(0, 0), Cores(0, 4)}) ==
        std::vector{1, 4});  // one that could not be asked
}

TEST_CASE("a rank with less than its part of the host is bound too tightly") {
  const cpu_set_t host = Cores(0, 8);
  const std::vector<cpu_set_t> cores = {Cores(0, 1), Cores(1, 2)},
                               sockets = {Cores(0, 4), Cores(4, 8)};
  CHECK(BoundTooTightly(cores, 0, host));
  CHECK(BoundTooTightly(cores, 1, host));
  CHECK(!BoundTooTightly(sockets, 1, host));
  CHECK(!BoundTooTightly(std::vector{host, host}, 0, host));
  CHECK(!BoundTooTightly(cores, 0, Cores(0, 2)));
}

TEST_CASE("a process may run somewhere") {
  const cpu_set_t own = CoresOf(0);
  CHECK(CPU_COUNT(&own) > 0);
}

}  // namespace
}  // namespace hadal
