#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "client/request_flags.h"
#include "common/status.h"

namespace hadal {

// `hadal bench`: a closed loop of `concurrency` streams until `requests` have been made.
struct BenchOptions {
  RequestFlags request;
  int concurrency = 1;
  int requests = 16;
  int prompt_tokens = 128;
  int max_tokens = 128;
  bool stop_at_eos = false;  // by default every answer has max_tokens tokens
  bool json = false;
  double wait_s = 0;
};

// p50, p90, p99 by nearest rank; zeros for no samples.
struct Percentiles {
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
};
Percentiles ComputePercentiles(std::vector<double> samples);

// Of one request that ended well; milliseconds.
struct RequestTimes {
  double ttft = 0;            // sent until the first token
  double e2e = 0;             // sent until the end
  double tpot = 0;            // (e2e - ttft) / (tokens - 1)
  std::vector<double> itl;    // between deliveries, one per delivery
  int tokens = 0;
  int cached_tokens = 0;      // of the prompt, found in the prefix cache
};

// Requests that ended with one status code.
struct Failures {
  int count = 0;
  std::string sample;  // what one of them was told
};

struct BenchReport {
  double seconds = 0;
  int completed = 0;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t generated_tokens = 0;
  Percentiles ttft_ms, itl_ms, tpot_ms, e2e_ms;
  std::map<StatusCode, Failures> errors;
};
BenchReport MakeReport(const std::vector<RequestTimes>& times, double seconds, int prompt_tokens,
                       std::map<StatusCode, Failures> errors);

// OK when there are none, else the code of the most.
Status StatusOf(const std::map<StatusCode, Failures>& errors, int requests);

// Prints a table or one JSON object, and progress and failures on stderr. Not OK when a request failed.
Status RunBench(const BenchOptions& options);

}  // namespace hadal
