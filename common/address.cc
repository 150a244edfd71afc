#include "common/address.h"

#include <charconv>

namespace hadal {

Status CheckAddress(std::string_view address, int lowest_port) {
  if (address.starts_with("unix:") && address.size() > 5) return OkStatus();
  const size_t colon = address.rfind(':');
  const std::string_view host = address.substr(0, colon);
  // An IPv6 address without brackets would lose its last group to the port.
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (colon == std::string_view::npos || host.empty() ||
      (!bracketed && host.find_first_of(":/[] ") != std::string_view::npos)) {
    return InvalidArgument("'{}' is not HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051",
                           address);
  }
  const char* const end = address.data() + address.size();
  int port = 0;
  const auto [last, error] = std::from_chars(address.data() + colon + 1, end, port);
  if (error != std::errc() || last != end || port < lowest_port || port > 65535) {
    return InvalidArgument("'{}' needs a port from {} to 65535 behind the colon", address,
                           lowest_port);
  }
  return OkStatus();
}

}  // namespace hadal
