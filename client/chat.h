#pragma once

#include <optional>
#include <string>

#include "client/request_flags.h"
#include "common/status.h"

namespace hadal {

// `hadal chat`: a conversation in the terminal, or one answer with `prompt`.
struct ChatOptions {
  RequestFlags request;
  std::optional<std::string> prompt;  // answer this on stdout and return
  std::optional<std::string> system;
  bool thinking = false;
  double wait_s = 0;                  // for readiness, first
};

Status RunChat(const ChatOptions& options);

}  // namespace hadal
