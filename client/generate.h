#pragma once

#include <optional>
#include <string>
#include <vector>

#include "client/request_flags.h"
#include "common/status.h"

namespace hadal {

// `hadal generate`: one request; exactly one of prompt, chat and token_ids is set.
struct GenerateOptions {
  RequestFlags request;
  std::optional<std::string> prompt;  // prompt and chat: "-" is standard input
  std::optional<std::string> chat;
  std::vector<int> token_ids;
  std::optional<int> logprobs;
  bool prompt_logprobs = false;
  bool json = false;
  double wait_s = 0;  // for readiness, first
};

// Streams the text, or token ids of a model without tokenizer, to stdout, or prints one JSON object.
Status RunGenerate(const GenerateOptions& options);

}  // namespace hadal
