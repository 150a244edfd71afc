#include "worker/comm/mpi_communicator.h"

#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/check.h"
#include "worker/comm/ordered_communicator.h"
#include "worker/comm/wait.h"

namespace hadal {
namespace {

constexpr int kDataTag = 1;
constexpr int kMessageTag = 2;
// MPI counts are ints: longer parts travel in pieces.
constexpr int64_t kMaxPiece = int64_t{1} << 30;
// Sleeping costs at most this much latency: within a step, and while no plan comes or a rank starts.
constexpr int64_t kStepSleepUs = 200;
constexpr int64_t kIdleSleepUs = 2000;

// The ranks of this host, to be freed.
MPI_Comm SplitByHost() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm host;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &host);
  return host;
}

class MpiCommunicator final : public OrderedCommunicator {
 public:
  MpiCommunicator(MPI_Comm comm, double timeout_s) : comm_(comm), timeout_s_(timeout_s) {
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
  }
  ~MpiCommunicator() override { MPI_Comm_free(&comm_); }
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void BroadcastMessage(std::vector<uint8_t>* message, int root) override {
    if (size_ == 1) return;
    if (rank_ == root) {
      requests_.clear();
      const int bytes = static_cast<int>(message->size());  // an empty message is sent too
      for (int r = 0; r < size_; ++r) {
        if (r == root) continue;
        MPI_Isend(message->data(), bytes, MPI_BYTE, r, kMessageTag, comm_,
                  &requests_.emplace_back());
      }
      Wait();
      return;
    }
    MPI_Status status;
    int arrived = 0;
    for (PollBackoff backoff(kIdleSleepUs);; backoff.Pause()) {
      MPI_Iprobe(root, kMessageTag, comm_, &arrived, &status);
      if (arrived) break;
    }
    int bytes = 0;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    message->resize(bytes);
    MPI_Recv(message->data(), bytes, MPI_BYTE, root, kMessageTag, comm_, MPI_STATUS_IGNORE);
  }

 protected:
  void Exchange(std::span<const Part> parts) override {
    requests_.clear();
    for (int r = 0; r < size_; ++r) {
      if (r != rank_) Receive(parts[r].recv, parts[r].recv_bytes, r);
    }
    // Every rank starts with another peer, so that not all send to rank 0 first.
    for (int i = 1; i < size_; ++i) {
      const int r = (rank_ + i) % size_;
      Send(parts[r].send, parts[r].send_bytes, r);
    }
    Wait();
  }

 private:
  void Send(const uint8_t* data, int64_t bytes, int to) {
    for (int64_t begin = 0; begin < bytes; begin += kMaxPiece) {
      const int piece = static_cast<int>(std::min(kMaxPiece, bytes - begin));
      MPI_Isend(data + begin, piece, MPI_BYTE, to, kDataTag, comm_, &requests_.emplace_back());
    }
  }

  void Receive(uint8_t* data, int64_t bytes, int from) {
    for (int64_t begin = 0; begin < bytes; begin += kMaxPiece) {
      const int piece = static_cast<int>(std::min(kMaxPiece, bytes - begin));
      MPI_Irecv(data + begin, piece, MPI_BYTE, from, kDataTag, comm_, &requests_.emplace_back());
    }
  }

  void Wait() {
    int done = 0;
    for (PollBackoff backoff(std::isinf(timeout_s_) ? kIdleSleepUs : kStepSleepUs);; backoff.Pause()) {
      MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE);
      if (done) return;
      if (backoff.TimeToCheck() && backoff.ElapsedSeconds() > timeout_s_) {
        throw CommError(CommError::Kind::kTimeout,
                        fmt::format("rank {} of {}: a peer was silent for {:.0f} s within a step",
                                    rank_, size_, timeout_s_));
      }
    }
  }

  MPI_Comm comm_;
  double timeout_s_;
  int rank_ = 0;
  int size_ = 1;
  std::vector<MPI_Request> requests_;
};

}  // namespace

MpiPlace GetMpiPlace() {
  MpiPlace place;
  MPI_Comm_rank(MPI_COMM_WORLD, &place.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &place.world);
  MPI_Comm host = SplitByHost();
  MPI_Comm_rank(host, &place.local_rank);
  MPI_Comm_free(&host);
  return place;
}

std::vector<cpu_set_t> GatherOnHost(const cpu_set_t& own) {
  MPI_Comm host = SplitByHost();
  int ranks = 0;
  MPI_Comm_size(host, &ranks);
  std::vector<cpu_set_t> all(ranks);
  MPI_Allgather(&own, sizeof(own), MPI_BYTE, all.data(), sizeof(own), MPI_BYTE, host);
  MPI_Comm_free(&host);
  return all;
}

StatusOr<CommGroup> MakeMpiCommGroup(const MpiOptions& options) {
  const MpiPlace place = GetMpiPlace();
  if (options.tensor_parallel * options.data_parallel != place.world) {
    return InvalidArgument(
        "--tensor-parallel {} x --data-parallel {} needs {} ranks, mpirun started {}",
        options.tensor_parallel, options.data_parallel,
        options.tensor_parallel * options.data_parallel, place.world);
  }
  MPI_Comm world;
  MPI_Comm_dup(MPI_COMM_WORLD, &world);
  MPI_Comm tensor;
  MPI_Comm_split(MPI_COMM_WORLD, place.rank / options.tensor_parallel, place.rank, &tensor);
  return HostCommGroup(std::make_shared<MpiCommunicator>(world, options.timeout_s),
                       std::make_shared<MpiCommunicator>(tensor, options.timeout_s));
}

std::shared_ptr<HostCommunicator> MakeMpiStartCommunicator() {
  MPI_Comm world;
  MPI_Comm_dup(MPI_COMM_WORLD, &world);
  return std::make_shared<MpiCommunicator>(world, std::numeric_limits<double>::infinity());
}

}  // namespace hadal
