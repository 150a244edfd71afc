#pragma once

#include <optional>
#include <string>

#include "client/request_flags.h"
#include "common/status.h"

namespace hadal {

// `hadal chat`: a conversation in the terminal, or one answer with `prompt`.
struct ChatOptions {
  RequestFlags request;
  std::optional<std::string> prompt;  // answer this on stdout and return; "-" is standard input
  std::optional<std::string> system;
  bool thinking = false;
  double wait_s = 0;                  // for readiness, first
};

// Errors are shown and the conversation goes on, but where stdin is no terminal the first one ends it.
Status RunChat(const ChatOptions& options);

}  // namespace hadal
