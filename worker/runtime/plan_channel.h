#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "common/status.h"
#include "common/step_plan.h"

namespace hadal {

// Rank 0's end of the stream of plans and results; gRPC, or in memory for tests.
class PlanChannel {
 public:
  virtual ~PlanChannel() = default;
  // The next plan's bytes; waits for it without using the CPU. Empty when the server closed the
  // stream: status() says why. One thread.
  virtual std::optional<std::string> NextPlan() = 0;
  // Whether NextPlan() would return at once; waits for that at most `patience`.
  virtual bool WaitForPlan(std::chrono::microseconds patience) = 0;
  // Any thread; does not block.
  virtual void SendResult(std::string result_bytes) = 0;
  // Tells the server why the group ends; returns when it is sent, or after a second.
  virtual void SendFailure(const std::string& cause) = 0;
  virtual Status status() const = 0;
  virtual uint64_t epoch() const = 0;
  // Ids from here on have no token and are not drawn.
  virtual int32_t vocab_limit() const = 0;
};

// Dials the server, with back-off while it cannot be reached (a line is logged every 5 s), and joins
// it. FAILED_PRECONDITION or PERMISSION_DENIED, with the server's sentence, when it refuses the group
// for good.
StatusOr<std::unique_ptr<PlanChannel>> JoinServer(const std::string& address,
                                                  const GroupCapacity& capacity,
                                                  const std::string& join_secret);

}  // namespace hadal
