#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/dtype.h"

namespace hadal {

// A peer is gone or silent: the group cannot go on. Caught once, at the step loop.
class CommError : public std::runtime_error {
 public:
  enum class Kind { kPeerFailed, kTimeout, kAborted };
  CommError(Kind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  Kind kind() const { return kind_; }

 private:
  Kind kind_;
};

// Collectives over a fixed set of ranks; NCCL, MPI, threads of one process, or one rank alone.
// Every rank makes the same calls in the same order from one thread. Buffers are host memory, and
// calls return when the local result is ready; or they are a device's, and calls take their place in
// its stream. All may throw CommError.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // data[i] = sum over ranks of data[i]; in place. Every rank gets the same bits.
  virtual void AllReduceSum(void* data, int64_t count, DType dtype) = 0;

  // recv = the sum over ranks of send[rank() * count ..]: every rank gets `count` elements of its own.
  virtual void ReduceScatterSum(const void* send, void* recv, int64_t count, DType dtype) = 0;

  // recv[r * bytes ..] = send of rank r. send may be recv + rank() * bytes.
  virtual void AllGather(const void* send, void* recv, int64_t bytes) = 0;

  // An AllGather of each array, started as one.
  struct Gather {
    const void* send = nullptr;
    void* recv = nullptr;
    int64_t bytes = 0;
  };
  virtual void AllGatherEach(std::span<const Gather> arrays) = 0;

  // Like AllGather with recv_bytes[r] from rank r, stored one after the other.
  virtual void AllGatherV(const void* send, void* recv, std::span<const int64_t> recv_bytes) = 0;

  // Sends send_bytes[r] to rank r (consecutive in send) and receives recv_bytes[r] from rank r
  // (consecutive in recv).
  virtual void AllToAllV(const void* send, std::span<const int64_t> send_bytes, void* recv,
                         std::span<const int64_t> recv_bytes) = 0;

  virtual void Broadcast(void* data, int64_t bytes, int root) = 0;
};

// Host memory. Sums of floats (other types are refused) run over ranks in ascending order, element by
// element: an element's sum does not depend on what else is in the buffer.
class HostCommunicator : public Communicator {
 public:
  // Broadcast of a message whose length only the root knows; waits without a deadline and, while
  // nothing arrives, without using the CPU. For the plans of an idle worker group.
  virtual void BroadcastMessage(std::vector<uint8_t>* message, int root) = 0;

  virtual void Barrier() = 0;
};

// Looks after collectives that a device has yet to run.
class CollectiveWatch {
 public:
  virtual ~CollectiveWatch() = default;

  // Throws CommError when a collective has failed; all are aborted then. Cheap.
  virtual void Check() = 0;
  // Returns once done() is true. Throws CommError as Check() does, or after the timeout; all
  // collectives are aborted then, so that the stream comes to its end.
  virtual void Await(const std::function<bool()>& done) = 0;
};

// The communicators of one rank.
struct CommGroup {
  std::shared_ptr<HostCommunicator> world;   // T * D ranks
  std::shared_ptr<HostCommunicator> tensor;  // the T ranks of this rank's D group
  // The same ranks, for what lies in a backend's memory.
  std::shared_ptr<Communicator> act_world;
  std::shared_ptr<Communicator> act_tensor;
  std::shared_ptr<CollectiveWatch> watch;  // null: a collective returns when it has run
};

// For backends whose memory is the host's.
inline CommGroup HostCommGroup(std::shared_ptr<HostCommunicator> world,
                               std::shared_ptr<HostCommunicator> tensor) {
  return {world, tensor, world, tensor, nullptr};
}

// One rank alone. AllReduceSum and Broadcast do nothing, so any memory will do.
std::shared_ptr<HostCommunicator> MakeSelfCommunicator();

}  // namespace hadal
