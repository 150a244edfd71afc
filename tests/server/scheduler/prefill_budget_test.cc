#include "server/scheduler/prefill_budget.h"

#include <algorithm>
#include <deque>
#include <random>
#include <vector>

#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

// A machine whose steps take: the running streams, then for any prompt at all a fixed extra, then
// so much per prompt token.
struct Machine {
  double decode_us = 0;
  double fixed_us = 0;
  double token_us = 0;
  double StepUs(int32_t prompt_tokens) const {
    return decode_us + (prompt_tokens > 0 ? fixed_us + token_us * prompt_tokens : 0);
  }
};

struct Run {
  std::vector<int32_t> chunks;  // of the steps, in order
  double MeanUs(const Machine& machine) const {
    double sum = 0;
    for (const int32_t chunk : chunks) sum += machine.StepUs(chunk);
    return sum / static_cast<double>(chunks.size());
  }
};

// A stream runs beside endless prompts, plans are made one ahead. `noise` scales each step's time.
Run RunMixed(const Machine& machine, int32_t budget_tokens, int steps, double noise = 0) {
  std::mt19937_64 random(testing::RandomSeed());
  std::uniform_real_distribution<double> factor(1 - noise, 1 + noise);
  PrefillBudget budget(budget_tokens);
  Run run;
  std::deque<int32_t> in_flight;
  for (int i = 0; i < steps; ++i) {
    const int32_t chunk = budget.NextChunk(true);
    budget.OnPlanned(true, chunk);
    run.chunks.push_back(chunk);
    in_flight.push_back(chunk);
    if (in_flight.size() < 2) continue;
    const double us = machine.StepUs(in_flight.front()) * factor(random);
    budget.OnResult(true, in_flight.front(), static_cast<int64_t>(us));
    in_flight.pop_front();
  }
  return run;
}

}  // namespace

TEST_CASE("without running streams a prompt gets the whole budget") {
  PrefillBudget budget(512);
  CHECK(budget.NextChunk(false) == 512);
  budget.OnPlanned(false, 512);
  budget.OnResult(false, 512, 1'000'000);
  CHECK(budget.NextChunk(false) == 512);
}

TEST_CASE("chunks grow to what three times the step allows, and not beyond") {
  const Machine machine{.decode_us = 20'000, .fixed_us = 4'000, .token_us = 300};
  const Run run = RunMixed(machine, 512, 400);
  // (2 * 20000 - 4000) / 300 = 120 tokens make the step three times as long.
  int32_t largest = 0;
  for (size_t i = 0; i < run.chunks.size(); ++i) {
    CHECK(machine.StepUs(run.chunks[i]) <= 3.05 * machine.decode_us);
    if (i > 50) largest = std::max(largest, run.chunks[i]);
  }
  CHECK(largest >= 96);
  CHECK(std::ranges::count(run.chunks, 0) < 60);
}

TEST_CASE("where the smallest chunk is too slow, pauses hold the mean") {
  const Machine machine{.decode_us = 10'000, .fixed_us = 60'000, .token_us = 500};
  const Run run = RunMixed(machine, 512, 1000);
  CHECK(run.MeanUs(machine) <= 3.5 * machine.decode_us);
  // The prompt goes on all the same.
  CHECK(std::ranges::count_if(run.chunks, [](int32_t chunk) { return chunk > 0; }) > 150);
}

double TokensPerSecond(const Run& run, const Machine& machine) {
  double tokens = 0, us = 0;
  for (const int32_t chunk : run.chunks) tokens += chunk, us += machine.StepUs(chunk);
  return 1e6 * tokens / us;
}

TEST_CASE("where having any prompt tokens is what takes long, there are many of them in a step") {
  // As one stream of a small model on a GPU: recorded steps, and mixed ones that wake all experts.
  for (const double fixed_us : {3'900.0, 4'100.0, 4'900.0, 9'000.0}) {
    const Machine machine{.decode_us = 2'000, .fixed_us = fixed_us, .token_us = 12};
    const Run run = RunMixed(machine, 2048, 400);
    CHECK(run.MeanUs(machine) <= 3.2 * machine.decode_us);
    // A step without streams would get 2048 / (2000 + fixed + 2048 * 12) of them a second, 60,000
    // to 70,000; chunks of 8 with a pause each get 1,000 at most.
    CHECK(TokensPerSecond(run, machine) >= 12'000);
    for (const int32_t chunk : run.chunks) {
      CHECK(machine.StepUs(chunk) <= 3.1 * machine.decode_us + 1.1 * fixed_us);
    }
  }
}

TEST_CASE("the end of a prompt does not make the next one begin small") {
  const Machine machine{.decode_us = 2'000, .fixed_us = 1'000, .token_us = 12};
  PrefillBudget budget(2048);
  int32_t chunk = 0;
  for (int i = 0; i < 100; ++i) {
    chunk = budget.NextChunk(true);
    const int32_t used = i % 5 == 4 ? std::min(chunk, 3) : chunk;
    budget.OnPlanned(true, used);
    budget.OnResult(true, used, static_cast<int64_t>(machine.StepUs(used)));
    if (i > 50 && chunk > 0) CHECK(chunk >= 64);
  }
}

TEST_CASE("noise does not break the bound") {
  const Machine machine{.decode_us = 5'000, .fixed_us = 1'000, .token_us = 200};
  const Run run = RunMixed(machine, 256, 2000, 0.3);
  CHECK(run.MeanUs(machine) <= 3.5 * machine.decode_us);
  CHECK(run.MeanUs(machine) >= 1.5 * machine.decode_us);
}

TEST_CASE("a cheap prompt token may fill the budget") {
  const Machine machine{.decode_us = 10'000, .fixed_us = 0, .token_us = 10};
  const Run run = RunMixed(machine, 100, 200);
  CHECK(std::ranges::max(run.chunks) == 100);
}

TEST_CASE("prompts advance whatever times are reported, and the budget is never exceeded") {
  std::mt19937_64 random(testing::RandomSeed());
  for (int round = 0; round < 200; ++round) {
    const auto tokens = static_cast<int32_t>(1 + random() % 300);
    PrefillBudget budget(tokens);
    const int64_t scale = int64_t{1} << (random() % 50);
    int64_t advanced = 0;
    for (int i = 0; i < 400; ++i) {
      const bool decoding = random() % 8 != 0;
      const int32_t chunk = budget.NextChunk(decoding);
      REQUIRE(chunk >= 0);
      REQUIRE(chunk <= tokens);
      if (decoding) advanced += chunk;
      budget.OnPlanned(decoding, chunk);
      budget.OnResult(decoding, chunk, static_cast<int64_t>(random() % 3) * scale - 1);
    }
    CHECK(advanced > 0);
  }
}

}  // namespace hadal
