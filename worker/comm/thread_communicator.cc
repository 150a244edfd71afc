#include "worker/comm/thread_communicator.h"

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "common/check.h"
#include "worker/comm/ordered_communicator.h"

namespace hadal {
namespace {

// What the threads of one communicator share.
struct Meeting {
  Meeting(int ranks, double timeout) : size(ranks), timeout_s(timeout), parts(ranks) {}

  // Returns when all ranks have called it.
  void Arrive() {
    std::unique_lock lock(mutex);
    const uint64_t round = rounds;
    if (++arrived == size) {
      arrived = 0;
      ++rounds;
      cv.notify_all();
      return;
    }
    const auto timeout = std::chrono::duration<double>(timeout_s);
    if (!cv.wait_for(lock, timeout, [&] { return rounds != round; })) {
      throw CommError(CommError::Kind::kTimeout,
                      fmt::format("{} of {} ranks arrived within {} s", arrived, size, timeout_s));
    }
  }

  const int size;
  const double timeout_s;
  std::vector<const void*> parts;  // [size] what each rank has published
  std::mutex mutex;
  std::condition_variable cv;
  int arrived = 0;
  uint64_t rounds = 0;
};

class ThreadCommunicator final : public OrderedCommunicator {
 public:
  ThreadCommunicator(std::shared_ptr<Meeting> meeting, int rank)
      : meeting_(std::move(meeting)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return meeting_->size; }

  void BroadcastMessage(std::vector<uint8_t>* message, int root) override {
    meeting_->parts[rank_] = message;
    meeting_->Arrive();
    if (rank_ != root) *message = *static_cast<const std::vector<uint8_t>*>(meeting_->parts[root]);
    meeting_->Arrive();
  }

 protected:
  void Exchange(std::span<const Part> parts) override {
    meeting_->parts[rank_] = parts.data();
    meeting_->Arrive();
    for (int r = 0; r < size(); ++r) {
      if (r == rank_ || parts[r].recv_bytes == 0) continue;
      const Part& peer = static_cast<const Part*>(meeting_->parts[r])[rank_];
      HADAL_CHECK(peer.send_bytes == parts[r].recv_bytes, "rank {} sends {} bytes, rank {} expects {}",
                  r, peer.send_bytes, rank_, parts[r].recv_bytes);
      std::memcpy(parts[r].recv, peer.send, peer.send_bytes);
    }
    meeting_->Arrive();
  }

 private:
  std::shared_ptr<Meeting> meeting_;
  int rank_;
};

}  // namespace

std::vector<CommGroup> MakeThreadCommGroups(int tensor_parallel, int data_parallel,
                                            double timeout_s) {
  const int world = tensor_parallel * data_parallel;
  auto world_meeting = std::make_shared<Meeting>(world, timeout_s);
  std::vector<CommGroup> groups(world);
  for (int d = 0; d < data_parallel; ++d) {
    auto tensor_meeting = std::make_shared<Meeting>(tensor_parallel, timeout_s);
    for (int t = 0; t < tensor_parallel; ++t) {
      const int rank = d * tensor_parallel + t;
      groups[rank] = HostCommGroup(std::make_shared<ThreadCommunicator>(world_meeting, rank),
                                   std::make_shared<ThreadCommunicator>(tensor_meeting, t));
    }
  }
  return groups;
}

}  // namespace hadal
