#pragma once

#include <string>

#include "common/status.h"

namespace hadal {

// `hadal status`: what the server serves and how busy it is, as text or one JSON object, on stdout.
Status PrintServerStatus(const std::string& server, bool json);

}  // namespace hadal
