#include <mpi.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>

#include "common/converted_checkpoint.h"
#include "common/dummy_checkpoint.h"
#include "common/file.h"
#include "common/model_config.h"
#include "worker/agreement.h"
#include "worker/backends.h"
#include "worker/comm/mpi_communicator.h"
#include "worker/cores.h"
#include "worker/model/fixed_exchange.h"
#include "worker/model/model.h"
#include "worker/options.h"
#include "worker/runtime/memory_budget.h"
#include "worker/runtime/plan_loop.h"

namespace hadal {
namespace {

std::string HostName() {
  char name[256] = {};
  gethostname(name, sizeof(name) - 1);
  return name;
}

void SetUpLog(const WorkerOptions& options, const MpiPlace& place) {
  auto log = spdlog::stderr_color_mt("worker");
  log->set_pattern(fmt::format("%Y-%m-%d %H:%M:%S.%e %^%l%$ [worker {}/{}] %v", place.rank, place.world));
  spdlog::set_default_logger(log);
  spdlog::set_level(spdlog::level::from_str(options.log_level));
}

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Logs `text`(done, total) at most every two seconds.
Model::Progress Progress(std::function<std::string(int64_t, int64_t)> text) {
  auto last = std::make_shared<Clock::time_point>(Clock::now());
  return [last, text = std::move(text)](int64_t done, int64_t total) {
    if (SecondsSince(*last) < 2) return;
    *last = Clock::now();
    spdlog::info("{} ({} %)", text(done, total), done * 100 / std::max<int64_t>(total, 1));
  };
}

// Ends the ranks of the whole job, without a return: destructors may wait for a device whose collectives
// never end.
[[noreturn]] void AbortJob(const MpiPlace& place, const std::exception& error) {
  spdlog::critical("rank {} on {}: {}", place.rank, HostName(), error.what());
  MPI_Abort(MPI_COMM_WORLD, 1);
  std::abort();
}

// One rank from its model directory to the end of the group.
class Worker {
 public:
  Worker(WorkerOptions options, const MpiPlace& place, CommGroup comm,
         std::shared_ptr<HostCommunicator> start)
      : options_(std::move(options)), place_(place), comm_(std::move(comm)), start_(std::move(start)) {
    layout_ = {options_.tensor_parallel, options_.data_parallel, place.rank};
  }

  Status Run() {
    DecideThreads();
    HADAL_RETURN_IF_ERROR(Agree(Prepare(), start_.get()));
    HADAL_RETURN_IF_ERROR(AgreeOnFacts({{"model fingerprint", capacity_.fingerprint}}, start_.get()));
    sharers_ = RanksOfThisMemory();
    HADAL_RETURN_IF_ERROR(Agree(PlanCache(), start_.get()));
    HADAL_RETURN_IF_ERROR(Agree(Connect(), start_.get()));
    HADAL_RETURN_IF_ERROR(AgreeOnKvBlocks());
    HADAL_RETURN_IF_ERROR(Agree(LoadModel(), start_.get()));
    StepRunner runner(model_.get(), backend_.get(), comm_, layout_, capacity_);
    try {
      if (options_.warm_up) WarmUp(&runner);
      if (place_.rank == 0) return Lead(&runner);
      FollowPlans(&runner, comm_.world.get());
      return OkStatus();
    } catch (const std::exception& e) {
      AbortJob(place_, e);
    }
  }

 private:
  void DecideThreads() {
    const std::vector<cpu_set_t> masks = GatherOnHost(CoresOf(0));
    const cpu_set_t& own = masks[place_.local_rank];
    const cpu_set_t host = CoresOf(getppid());  // of mpirun, which binds ranks but not itself
    if (options_.backend == "cpu" && BoundTooTightly(masks, place_.local_rank, host)) {
      spdlog::warn("this rank may run on {} of {} cores only; mpirun --bind-to none leaves it all",
                   CPU_COUNT(&own), CPU_COUNT(&host));
    }
    if (options_.threads == 0) options_.threads = ThreadsOfRank(masks, place_.local_rank);
  }

  // Everything that can be refused before a weight is read.
  Status Prepare() {
    HADAL_ASSIGN_OR_RETURN(secret_, ReadSecret(options_.join_secret_file));
    HADAL_ASSIGN_OR_RETURN(config_, LoadModelConfig(options_.model_dir));
    HADAL_RETURN_IF_ERROR(ValidateLayout(config_, layout_));
    HADAL_ASSIGN_OR_RETURN(checkpoint_,
                           options_.load_format == "dummy"
                               ? MakeDummyCheckpoint(config_, /*seed=*/0)
                               : OpenCheckpoint(options_.model_dir, config_, layout_));
    HADAL_ASSIGN_OR_RETURN(capacity_.fingerprint, ModelFingerprint(options_.model_dir));
    HADAL_ASSIGN_OR_RETURN(const DType activations, ActivationsOf(options_.activations, config_));
    HADAL_ASSIGN_OR_RETURN(backend_, MakeBackend({.name = options_.backend, .isa = options_.isa,
                                                  .threads = options_.threads,
                                                  .scale_block = config_.scale_block,
                                                  .local_rank = place_.local_rank,
                                                  .activations = activations}));
    capacity_.tensor_parallel = layout_.tensor_parallel;
    capacity_.data_parallel = layout_.data_parallel;
    capacity_.max_slots = options_.max_slots;
    capacity_.max_step_tokens = options_.max_step_tokens;
    return OkStatus();
  }

  // On this host; visible devices may differ from rank to rank.
  int RanksOfThisMemory() {
    const uint64_t own = std::hash<std::string>()(HostName() + "/" + MemoryName(*backend_));
    std::vector<uint64_t> all(place_.world);
    start_->AllGather(&own, all.data(), sizeof(own));
    return static_cast<int>(std::count(all.begin(), all.end(), own));
  }

  Status PlanCache() {
    const int64_t available = backend_->AvailableBytes(sharers_);
    const KvRequest request{options_.kv_blocks, options_.kv_memory};
    if (options_.expanded_tokens < 0) {
      options_.expanded_tokens = DefaultExpandedTokens(config_, layout_, *backend_, ModelConfigOptions(1),
                                                       request, available);
    }
    const MemoryPlan plan = PlanMemory(config_, layout_, *backend_, ModelConfigOptions(1));
    recorded_bytes_ = plan.recorded;
    HADAL_ASSIGN_OR_RETURN(capacity_.kv_blocks,
                           DecideKvBlocks(config_, plan, request, available));
    spdlog::info("{}; layout {} x {}; memory: {}", backend_->name(), layout_.tensor_parallel,
                 layout_.data_parallel, DescribeMemoryPlan(plan, capacity_.kv_blocks, available));
    return OkStatus();
  }

  Status Connect() {
    HADAL_ASSIGN_OR_RETURN(comm_, ConnectBackend(comm_, *backend_, layout_, options_.step_timeout_s));
    return OkStatus();
  }

  // The rank with the least memory decides.
  Status AgreeOnKvBlocks() {
    std::vector<int32_t> all(place_.world);
    start_->AllGather(&capacity_.kv_blocks, all.data(), sizeof(int32_t));
    capacity_.kv_blocks = *std::min_element(all.begin(), all.end());
    return OkStatus();
  }

  ModelOptions ModelConfigOptions(int32_t kv_blocks) const {
    return {.kv_blocks = kv_blocks,
            .max_step_tokens = options_.max_step_tokens,
            .max_rows = options_.max_slots,
            .max_step_logits = StepRunner::LogitRows(*backend_, options_.max_slots),
            .expanded_tokens = options_.expanded_tokens,
            .replays = backend_->replays(),
            .fixed_exchange = FixedExchangePays(config_, layout_, *backend_)};
  }

  Status LoadModel() {
    const auto start = Clock::now();
    const auto progress = Progress([](int64_t done, int64_t total) {
      return fmt::format("weights: {} of {}", FormatBytes(done), FormatBytes(total));
    });
    HADAL_ASSIGN_OR_RETURN(model_, Model::Load(config_, layout_, *checkpoint_, backend_.get(), comm_,
                                               ModelConfigOptions(capacity_.kv_blocks), progress));
    checkpoint_.reset();
    spdlog::info("model loaded in {:.1f} s", SecondsSince(start));
    return OkStatus();
  }

  void WarmUp(StepRunner* runner) {
    const auto start = Clock::now();
    const int64_t available = backend_->AvailableBytes(sharers_);
    const int steps = runner->WarmUp(Progress([](int64_t done, int64_t total) {
      return fmt::format("warm-up: {} of {} decode steps", done, total);
    }));
    if (steps == 0) return;
    const int64_t taken = available - backend_->AvailableBytes(sharers_);
    spdlog::info("{} decode steps recorded in {:.1f} s, {} of memory", steps, SecondsSince(start),
                 FormatBytes(taken));
    if (taken <= recorded_bytes_) return;
    spdlog::warn("recorded steps take {}, {} are planned for them: a lower --max-slots records fewer",
                 FormatBytes(taken), FormatBytes(recorded_bytes_));
  }

  // Serves epoch after epoch; returns only with an error that no new attempt can mend.
  Status Lead(StepRunner* runner) {
    for (;;) {
      StatusOr<std::unique_ptr<PlanChannel>> channel =
          JoinServer(options_.server, capacity_, secret_);
      if (!channel.ok()) {
        EndFollowers(comm_.world.get());
        return channel.status();
      }
      spdlog::info("joined {} as epoch {}", options_.server, (*channel)->epoch());
      Status ended;
      try {
        ended = LeadEpoch(channel->get(), runner, comm_.world.get(), layout_.data_parallel > 1);
      } catch (const std::exception& e) {
        (*channel)->SendFailure(fmt::format("rank 0 on {}: {}", HostName(), e.what()));
        throw;
      }
      spdlog::warn("the server ended epoch {}: {}", (*channel)->epoch(), ended.ToString());
    }
  }

  WorkerOptions options_;
  MpiPlace place_;
  CommGroup comm_;
  std::shared_ptr<HostCommunicator> start_;  // until the first plan
  Layout layout_;
  int sharers_ = 1;  // ranks that allocate from the memory that this one does
  ModelConfig config_;
  GroupCapacity capacity_;
  int64_t recorded_bytes_ = 0;  // planned for recorded steps
  std::string secret_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
};

// The exit code of this rank. An error after the start ends the whole job.
int RunWorker(WorkerOptions options, const MpiPlace& place) {
  SetUpLog(options, place);
  if (options.tensor_parallel == 0) {
    options.tensor_parallel = std::max(1, place.world / options.data_parallel);
  }
  const auto refuse = [](const Status& status) {
    spdlog::error("{}", status.message());
    return 1;
  };
  try {
    const auto start = MakeMpiStartCommunicator();
    Status status = AgreeOnFacts(SharedOptions(options), start.get());
    if (!status.ok()) return place.rank == 0 ? refuse(status) : 1;
    StatusOr<CommGroup> comm = MakeMpiCommGroup({.tensor_parallel = options.tensor_parallel,
                                                 .data_parallel = options.data_parallel,
                                                 .timeout_s = options.step_timeout_s});
    if (!comm.ok()) return place.rank == 0 ? refuse(comm.status()) : 1;
    status = Worker(options, place, std::move(comm).value(), start).Run();
    return status.ok() ? 0 : refuse(status);
  } catch (const std::exception& e) {
    AbortJob(place, e);
  }
}

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) {
  setenv("GRPC_VERBOSITY", "NONE", 0);  // what fails is said in one sentence of ours
  MPI_Init(&argc, &argv);
  const hadal::MpiPlace place = hadal::GetMpiPlace();
  const hadal::ParsedOptions parsed = hadal::ParseWorkerOptions(argc, argv);
  int exit_code = parsed.exit_code;
  if (parsed.exit) {
    if (place.rank == 0) std::fputs(parsed.text.c_str(), exit_code == 0 ? stdout : stderr);
  } else {
    exit_code = hadal::RunWorker(parsed.options, place);
  }
  MPI_Finalize();
  return exit_code;
}
