#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "tests/server/engine/fake_worker_group.h"
#include "tests/support/catch.h"

namespace hadal::testing {

struct Client {
  Request request;
  std::shared_ptr<RecordingSink> sink = std::make_shared<RecordingSink>();
  bool cancelled = false;
  int events_at_cancel = 0;
};

struct Totals {
  int64_t requests = 0, admissions = 0, recomputed_rows = 0, cached_tokens = 0, groups = 0;
  int64_t stopped = 0, length = 0, expired = 0, too_large = 0, non_finite = 0, lost_thrice = 0;
  int64_t cancelled = 0;
};

// What a request got is what it would have got alone, as far as it came. `poisoned`: one of its
// samples was made NaN.
inline void CheckTokens(const Client& client, bool poisoned, Totals* totals) {
  const Request& request = client.request;
  auto expected = ToyGenerate(request.prompt, request.sampling, request.max_tokens);
  const auto stop = std::ranges::find_first_of(expected, request.stop_token_ids);
  expected.erase(stop, expected.end());
  const std::vector<int32_t>& tokens = client.sink->tokens;
  REQUIRE(tokens.size() <= expected.size());
  CHECK(tokens ==
        std::vector<int32_t>(expected.begin(),
                             expected.begin() + static_cast<std::ptrdiff_t>(tokens.size())));
  const auto logprobs = ToyPromptLogprobs(request.prompt);
  if (request.prompt_logprobs && !tokens.empty()) {
    CHECK(client.sink->prompt_logprobs == logprobs);
  }
  if (!request.prompt_logprobs) CHECK(client.sink->prompt_logprobs.empty());

  if (client.cancelled || client.sink->finish->reason == FinishReason::kFailed) return;
  CHECK(tokens.size() == expected.size());
  const bool stopped = static_cast<int32_t>(expected.size()) < request.max_tokens;
  CHECK((client.sink->finish->reason == FinishReason::kStop) == stopped);
  CHECK(client.sink->finish->stop_token_id.has_value() == stopped);
  if (!stopped) CHECK_FALSE(poisoned);
  if (request.prompt_logprobs) CHECK(client.sink->prompt_logprobs == logprobs);
  ++(stopped ? totals->stopped : totals->length);
}

}  // namespace hadal::testing
