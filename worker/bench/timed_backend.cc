#include "worker/bench/timed_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

namespace hadal {

std::string TimedBackend::Shape(const PackedWeight* w) { return fmt::format(" {}x{}", w->n, w->k); }

double TimedBackend::Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void TimedBackend::Add(const std::string& op, double seconds) {
  auto it = std::find_if(times_.begin(), times_.end(), [&](const OpTime& t) { return t.op == op; });
  if (it == times_.end()) it = times_.insert(it, {.op = op});
  ++it->calls;
  it->seconds += seconds;
}

}  // namespace hadal
