// Requests that kill their workers, again and again.

#include <map>
#include <random>
#include <set>

#include "tests/server/scheduler/scheduler_harness.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

using testing::Capacity;
using testing::Harness;

// Workers that die whenever they compute a certain position of a certain request, with whatever
// else is in that plan or already behind it.
struct PoisonHarness : Harness {
  using Harness::Harness;

  bool Step() {
    const StepPlan plan = Plan();
    if (plan.groups.empty()) return false;
    bool dies = false;
    std::set<uint64_t> ids;
    for (size_t g = 0; g < plan.groups.size(); ++g) {
      // Seeds are ids.
      for (const SlotEnter& enter : plan.groups[g].enters) {
        owners[{g, enter.slot}] = enter.sampling.seed;
      }
      for (const PlanRow& row : plan.groups[g].rows) {
        const uint64_t id = owners.at({g, row.slot});
        const auto at = poison.find(id);
        ids.insert(id);
        dies |= at != poison.end() && row.start_pos <= at->second &&
                at->second < row.start_pos + row.num_tokens;
      }
    }
    deadly.push_back(dies);
    most_beside = std::max(most_beside, ids.size());
    return true;
  }

  // False: the group died instead.
  bool AnswerOrDie(const GroupCapacity& next) {
    const bool dies = deadly.front();
    deadly.pop_front();
    if (!dies) {
      Answer();
      return true;
    }
    Lose(next);
    return false;
  }

  void Lose(const GroupCapacity& next) {
    ++losses;
    deadly.clear();
    owners.clear();
    scheduler.GroupLost();
    for (RequestEvent& event : scheduler.TakeEvents()) finished[event.id] = *event.finish;
    Join(next);
  }

  std::map<uint64_t, int32_t> poison;  // request -> the position that kills
  std::map<std::pair<size_t, int32_t>, uint64_t> owners;
  std::deque<bool> deadly;  // of the plans in flight
  int losses = 0;
  size_t most_beside = 0;
};

bool DiedOfPoison(const RequestEvent::Finish& finish) {
  return finish.reason == FinishReason::kFailed && finish.status.code() == StatusCode::kInternal &&
         finish.status.message().starts_with("the workers were lost 3 times");
}

}  // namespace

TEST_CASE("whoever kills the workers fails at the third loss, and nobody else") {
  std::mt19937_64 random(testing::RandomSeed());
  const auto uniform = [&](int low, int high) {
    return low + static_cast<int>(random() % static_cast<uint64_t>(high - low + 1));
  };
  int all_losses = 0;
  for (int round = 0; round < 300; ++round) {
    const int groups = uniform(1, 2);
    const auto capacity = [&] { return Capacity(uniform(5, 12), uniform(1, 6), groups); };
    PoisonHarness h(capacity(), uniform(8, 120));
    std::map<uint64_t, Request> requests;
    const int count = uniform(1, 9);
    for (int i = 0; i < 20'000 && h.finished.size() < static_cast<size_t>(count); ++i) {
      if (requests.size() < static_cast<size_t>(count) && uniform(0, 5) == 0) {
        std::vector<int32_t> prompt(static_cast<size_t>(uniform(1, 200)));
        for (int32_t& token : prompt) token = uniform(0, testing::kToyVocabulary - 1);
        const uint64_t id = requests.size() + 1;
        const int max_tokens = uniform(1, 60);
        const int length = static_cast<int>(prompt.size()) + max_tokens - 1;
        if (uniform(0, 3) == 0) h.poison[id] = uniform(0, length - 1);
        requests[id] = h.Add(id, std::move(prompt), max_tokens);
      }
      const bool planned = h.Step();
      if (!h.deadly.empty() && (!planned || uniform(0, 1) == 0)) h.AnswerOrDie(capacity());
    }
    CAPTURE(round, count, h.poison.size(), h.losses);
    REQUIRE(h.finished.size() == static_cast<size_t>(count));
    CHECK(h.losses <= 3 * static_cast<int>(h.poison.size()));
    for (const auto& [id, request] : requests) {
      CAPTURE(id);
      auto expected = testing::ToyGenerate(request.prompt, request.sampling, request.max_tokens);
      if (const auto at = h.poison.find(id); at != h.poison.end()) {
        CHECK(DiedOfPoison(h.finished.at(id)));
        const int drawn = at->second + 1 - static_cast<int>(request.prompt.size());
        expected.resize(static_cast<size_t>(std::max(0, drawn)));
      } else {
        CHECK(h.finished.at(id).reason == FinishReason::kLength);
      }
      CHECK(h.tokens[id] == expected);
    }
    all_losses += h.losses;
  }
  CHECK(all_losses > 300);
}

TEST_CASE("suspects run one by one until they are past what was in flight, then together again") {
  PoisonHarness h(Capacity(40));
  const Request a = h.Add(1, testing::Tokens(0, 30), 100);
  const Request b = h.Add(2, testing::Tokens(7, 50), 100);
  for (int round = 0; round < 6; ++round) {
    for (int loss = 0; loss < 2; ++loss) {
      while (h.Step()) {
      }
      CHECK(h.deadly.size() == 2);
      CHECK(h.most_beside == 2);
      h.Lose(Capacity(40));
    }
    h.most_beside = 0;
    while (h.Step()) {
    }
    CHECK(h.most_beside == 1);
    const size_t before[] = {h.tokens[1].size(), h.tokens[2].size()};
    while (h.most_beside < 2 || h.tokens[1].size() < before[0] + 3 ||
           h.tokens[2].size() < before[1] + 3) {
      h.AnswerOrDie(Capacity(40));
      while (h.Step()) {
      }
      REQUIRE(!h.deadly.empty());
    }
  }
  h.RunDry();
  CHECK(h.tokens[1] == testing::ToyGenerate(a.prompt, a.sampling, 100));
  CHECK(h.tokens[2] == testing::ToyGenerate(b.prompt, b.sampling, 100));
}

}  // namespace hadal
