#pragma once

#include <cstdint>

namespace hadal {

// What both ends of WorkerService.Join must agree on besides the messages.

// Raised with every change of worker.proto or of the meaning of a field.
inline constexpr uint32_t kWorkerProtocolVersion = 1;

// Both ends ping a silent peer after the first, and give it up when the second has passed without an
// answer: a host that vanished is noticed after their sum. Milliseconds.
inline constexpr int kWorkerKeepaliveTimeMs = 10'000;
inline constexpr int kWorkerKeepaliveTimeoutMs = 8'000;

}  // namespace hadal
