#include "worker/agreement.h"

#include <functional>
#include <thread>

#include "tests/support/catch.h"
#include "worker/comm/thread_communicator.h"

namespace hadal {
namespace {

constexpr int kRanks = 3;

// What each rank is told.
std::vector<Status> OnRanks(const std::function<Status(int, HostCommunicator*)>& settle) {
  std::vector<CommGroup> groups = MakeThreadCommGroups(kRanks, 1);
  std::vector<Status> told(kRanks);
  std::vector<std::thread> threads;
  for (int r = 0; r < kRanks; ++r) {
    threads.emplace_back([&, r] { told[r] = settle(r, groups[r].world.get()); });
  }
  for (std::thread& thread : threads) thread.join();
  return told;
}

std::vector<Status> Settle(const std::vector<StartFacts>& facts) {
  return OnRanks([&](int r, HostCommunicator* world) { return AgreeOnFacts(facts[r], world); });
}

TEST_CASE("one rank's error is every rank's") {
  const auto told = OnRanks([](int r, HostCommunicator* world) {
    return Agree(r == 1 ? InvalidArgument("no such file") : OkStatus(), world);
  });
  CHECK(told[0].message() == "rank 1 could not start");
  CHECK(told[1].message() == "no such file");
  CHECK(told[2].message() == "rank 1 could not start");
}

TEST_CASE("ranks that were started alike agree") {
  const StartFacts facts = {{"model", "abc"}, {"--max-slots", "128"}, {"--activations", ""}};
  for (const Status& status : Settle({facts, facts, facts})) CHECK(status.ok());
}

TEST_CASE("every rank learns which rank differs, and in what") {
  const StartFacts facts = {{"model", "abc"}, {"--max-slots", "128"}, {"--backend", "cpu"}};
  StartFacts second = facts, third = facts;
  second[1].second = "64";
  third[0].second = "a model with another length";
  third[2].second = "cuda";
  for (const Status& status : Settle({facts, second, third})) {
    CHECK(status.code() == StatusCode::kFailedPrecondition);
    CHECK(
        status.message() ==
        "all ranks need the same model and options: rank 1 has --max-slots 64, rank 0 has 128; "
        "rank 2 has model a model with another length, rank 0 has abc; rank 2 has --backend cuda, "
        "rank 0 has cpu");
  }
}

}  // namespace
}  // namespace hadal
