#pragma once

#include <cstdint>
#include <vector>

#include "server/scheduler/request.h"

namespace hadal {

// One live request and how far it has come. Its tokens are the prompt, then `generated`, then up to
// samples_in_flight tokens that workers have drawn or will draw but nobody here knows yet.
struct Sequence {
  Request request;
  uint64_t order = 0;  // of arrival; unique and never reused, unlike slots
  std::vector<int32_t> generated;

  // Where it runs. group < 0: it waits, and the rest of this paragraph is empty.
  int32_t group = -1;
  int32_t slot = -1;
  std::vector<int32_t> blocks;
  int32_t computed = 0;    // tokens whose KV the plans issued so far write
  bool published = false;  // its prompt blocks are in the prefix cache

  // What plans in flight will bring, also after it lost its place in the meantime.
  int32_t rows_in_flight = 0;
  int32_t samples_in_flight = 0;

  // Worker groups lost in a row while it had rows in flight, and where the last of those rows ended.
  // Once that row has been answered, the losses were not its doing and count no more.
  int32_t losses = 0;
  int32_t lost_at = 0;

  std::vector<float> prompt_logprobs;  // of positions 1, 2, ... until they are delivered
  bool prompt_logprobs_delivered = false;
  RequestTiming timing;

  bool running() const { return group >= 0; }
  int32_t prompt_length() const { return static_cast<int32_t>(request.prompt.size()); }
  int32_t num_generated() const { return static_cast<int32_t>(generated.size()); }
  int32_t known() const { return prompt_length() + num_generated(); }
  int32_t length() const { return known() + samples_in_flight; }

  // Every token that it may draw is drawn or in flight.
  bool exhausted() const { return num_generated() + samples_in_flight >= request.max_tokens; }
  // Its next row is one generated token: it streams.
  bool decoding() const {
    return computed >= prompt_length() && length() - computed == 1 && !exhausted();
  }
  // Its next row is a chunk of prompt, or of generated tokens that a preemption or the loss of the
  // group made it forget.
  bool catching_up() const { return computed < prompt_length() || length() - computed > 1; }

  bool needs_prompt_logprobs() const {
    return request.prompt_logprobs && !prompt_logprobs_delivered;
  }

  // The most tokens that will ever have KV: the last sampled token is never fed back.
  int64_t max_kv_tokens() const { return int64_t{prompt_length()} + request.max_tokens - 1; }

  // kSampledToken where the value is in flight.
  int32_t TokenAt(int32_t position) const {
    if (position < prompt_length()) return request.prompt[position];
    if (position < known()) return generated[position - prompt_length()];
    return kSampledToken;
  }

  // The tokens of the next row: at most `limit`, never across the end of the prompt, because the
  // kind of a row follows from its tokens.
  int32_t NextRowTokens(int32_t limit) const {
    const int32_t end = computed < prompt_length() ? prompt_length() : length();
    return end - computed < limit ? end - computed : limit;
  }
};

}  // namespace hadal
