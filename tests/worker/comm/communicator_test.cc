#include <thread>

#include "tests/support/catch.h"
#include "tests/support/random_seed.h"
#include "tests/worker/comm/collective_cases.h"
#include "worker/comm/thread_communicator.h"
#include "worker/comm/wait.h"

namespace hadal {
namespace {

// Runs fn(comm group, rank) on one thread per rank; returns what each rank reported.
template <typename Fn>
std::vector<std::string> OnRanks(int tensor_parallel, int data_parallel, Fn fn) {
  std::vector<CommGroup> groups = MakeThreadCommGroups(tensor_parallel, data_parallel);
  std::vector<std::string> errors(groups.size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < groups.size(); ++r) {
    threads.emplace_back([&, r] { errors[r] = fn(groups[r]); });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

TEST_CASE("collectives are exact over threads") {
  for (auto [t, d] : {std::pair{1, 1}, {2, 1}, {4, 1}, {1, 3}, {2, 2}, {3, 2}}) {
    CAPTURE(t, d);
    const auto errors = OnRanks(t, d, [](CommGroup& comm) {
      std::string error = testing::CheckAllCollectives(*comm.world, testing::RandomSeed());
      if (error.empty()) error = testing::CheckAllCollectives(*comm.tensor, testing::RandomSeed());
      return error;
    });
    for (const std::string& error : errors) CHECK(error == "");
  }
}

TEST_CASE("sums run in rank order whatever the buffer") {
  for (int world : {2, 3, 4}) {
    const auto errors = OnRanks(world, 1, [](CommGroup& comm) {
      return testing::CheckReductionOrder(*comm.world, testing::RandomSeed());
    });
    for (const std::string& error : errors) CHECK(error == "");
  }
}

TEST_CASE("one rank alone") {
  CHECK(testing::CheckAllCollectives(*MakeSelfCommunicator(), testing::RandomSeed()) == "");
}

TEST_CASE("a silent peer is a timeout") {
  std::vector<CommGroup> groups = MakeThreadCommGroups(2, 1, 0.05);
  float x = 1;
  CHECK_THROWS_AS(groups[0].world->AllReduceSum(&x, 1, DType::kF32), CommError);
}

TEST_CASE("polls are counted until sleeping begins, however long a wait is") {
  PollBackoff backoff(/*max_sleep_us=*/1);
  std::vector<int> counts;
  for (int i = 0; i < 4000; ++i) {
    backoff.Pause();
    counts.push_back(backoff.polls());
  }
  CHECK(counts[0] == 1);
  CHECK(counts.back() < 3500);
  CHECK(counts.back() == counts[3500]);
  CHECK(backoff.TimeToCheck());
}

}  // namespace
}  // namespace hadal
