#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"
#include "common/step_plan.h"

namespace hadal {

// A request as the scheduler sees it: ids only, already validated, limits already resolved.
struct Request {
  uint64_t id = 0;
  std::vector<int32_t> prompt;              // at least one id
  SamplingParams sampling;                  // seed resolved
  int32_t max_tokens = 1;                   // >= 1; prompt + max_tokens fits the context
  bool max_tokens_is_default = false;       // nobody asked for so many: lowered to what workers hold
  std::vector<int32_t> stop_token_ids;      // end-of-sequence included unless ignored
  bool prompt_logprobs = false;
  int64_t arrival_us = 0;                   // of the engine's clock
  int64_t deadline_us = INT64_MAX;
};

enum class FinishReason { kStop, kLength, kFailed };

struct GeneratedToken {
  int32_t token = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top;
};

struct RequestTiming {
  int64_t arrival_us = 0;
  int64_t scheduled_us = 0;     // first prompt token scheduled
  int64_t first_token_us = 0;
  int64_t last_token_us = 0;
  int32_t cached_tokens = 0;    // of the prompt, from the prefix cache at first scheduling
};

// News of one request, in order. Every request ends with exactly one event that has `finish`.
struct RequestEvent {
  uint64_t id = 0;
  std::vector<float> prompt_logprobs;   // once, complete, before the first token
  std::vector<GeneratedToken> tokens;   // a stop token is not among them
  struct Finish {
    FinishReason reason = FinishReason::kStop;
    std::optional<int32_t> stop_token_id;
    Status status;                      // kFailed: why
  };
  std::optional<Finish> finish;
  RequestTiming timing;                 // what is known so far
};

}  // namespace hadal
