#pragma once

#include <string_view>

#include "common/status.h"

namespace hadal {

// OK for HOST:PORT with a port from `lowest_port` to 65535, IPv6 hosts in brackets, and for
// unix:PATH.
Status CheckAddress(std::string_view address, int lowest_port);

}  // namespace hadal
