#include <algorithm>
#include <random>

#include "client/bench.h"
#include "tests/support/catch.h"
#include "tests/support/random_seed.h"

namespace hadal {
namespace {

// The definition: the smallest sample that at least `percent` of all do not exceed.
double NearestRank(const std::vector<double>& samples, size_t percent) {
  double best = *std::ranges::max_element(samples);
  for (const double candidate : samples) {
    const auto below = static_cast<size_t>(
        std::ranges::count_if(samples, [&](double sample) { return sample <= candidate; }));
    if (below * 100 >= percent * samples.size()) best = std::min(best, candidate);
  }
  return best;
}

TEST_CASE("percentiles are those of the nearest rank, whatever the order of the samples") {
  std::mt19937_64 random(testing::RandomSeed());
  for (size_t n = 1; n <= 210; ++n) {
    std::vector<double> samples(n);
    // Few values, so that samples tie.
    for (double& sample : samples) sample = static_cast<double>(random() % (1 + n)) * 0.5;
    const Percentiles got = ComputePercentiles(samples);
    CAPTURE(n);
    REQUIRE(got.p50 == NearestRank(samples, 50));
    REQUIRE(got.p90 == NearestRank(samples, 90));
    REQUIRE(got.p99 == NearestRank(samples, 99));
  }
}

TEST_CASE("percentiles of nothing are zero") {
  const Percentiles none = ComputePercentiles({});
  REQUIRE(none.p50 == 0);
  REQUIRE(none.p90 == 0);
  REQUIRE(none.p99 == 0);
}

TEST_CASE("a report adds up requests; one token has no time per further token") {
  std::vector<RequestTimes> times(3);
  times[0] = {.ttft = 10, .e2e = 50, .tpot = 20, .itl = {15, 25}, .tokens = 3, .cached_tokens = 5};
  times[1] = {.ttft = 30, .e2e = 30, .tpot = 0, .itl = {}, .tokens = 1};
  times[2] = {.ttft = 20, .e2e = 26, .tpot = 2, .itl = {6}, .tokens = 4};
  const BenchReport report = MakeReport(times, 2.5, 7, {{StatusCode::kUnavailable, {2, "down"}}});
  REQUIRE(report.seconds == 2.5);
  REQUIRE(report.completed == 3);
  REQUIRE(report.prompt_tokens == 21);
  REQUIRE(report.generated_tokens == 8);
  REQUIRE(report.cached_tokens == 5);
  REQUIRE(report.errors.at(StatusCode::kUnavailable).count == 2);
  REQUIRE(report.ttft_ms.p50 == 20);
  REQUIRE(report.ttft_ms.p99 == 30);
  REQUIRE(report.itl_ms.p50 == 15);
  REQUIRE(report.itl_ms.p90 == 25);
  REQUIRE(report.tpot_ms.p50 == 2);  // of two requests, not of three
  REQUIRE(report.tpot_ms.p90 == 20);
  REQUIRE(report.e2e_ms.p50 == 30);
}

TEST_CASE("a report of failures alone has no times") {
  const BenchReport report = MakeReport({}, 1, 7, {{StatusCode::kInternal, {1, ""}}});
  REQUIRE(report.completed == 0);
  REQUIRE(report.generated_tokens == 0);
  REQUIRE(report.e2e_ms.p99 == 0);
}

TEST_CASE("a load test ends with the code that most of its failures have") {
  REQUIRE(StatusOf({}, 8).ok());
  const Status status = StatusOf({{StatusCode::kDeadlineExceeded, {1, ""}},
                                  {StatusCode::kResourceExhausted, {3, ""}},
                                  {StatusCode::kUnavailable, {2, ""}}},
                                 8);
  REQUIRE(status.code() == StatusCode::kResourceExhausted);
  REQUIRE(status.message() == "6 of 8 requests failed");
}

}  // namespace
}  // namespace hadal
