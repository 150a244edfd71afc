#include <mpi.h>
#include <sched.h>
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
#include "worker/backends.h"
#include "worker/comm/mpi_communicator.h"
#include "worker/model/expanded_prompt.h"
#include "worker/model/fixed_exchange.h"
#include "worker/model/model.h"
#include "worker/options.h"
#include "worker/runtime/memory_budget.h"
#include "worker/runtime/plan_loop.h"

namespace hadal {
namespace {

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

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

// The same verdict on every rank: OK, or the error of the lowest rank that has one (others only learn
// that there is one).
Status Agree(const Status& own, HostCommunicator* world) {
  const int32_t failed = own.ok() ? 0 : 1;
  std::vector<int32_t> all(world->size());
  world->AllGather(&failed, all.data(), sizeof(failed));
  if (!own.ok()) return own;
  const auto first = std::find(all.begin(), all.end(), 1);
  if (first == all.end()) return OkStatus();
  return FailedPrecondition("rank {} could not start", first - all.begin());
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
  Worker(WorkerOptions options, const MpiPlace& place, CommGroup comm)
      : options_(std::move(options)), place_(place), comm_(std::move(comm)) {
    layout_ = {options_.tensor_parallel, options_.data_parallel, place.rank};
  }

  Status Run() {
    HADAL_RETURN_IF_ERROR(Agree(Prepare(), comm_.world.get()));
    sharers_ = RanksOfThisMemory();
    HADAL_RETURN_IF_ERROR(Agree(PlanCache(), comm_.world.get()));
    HADAL_RETURN_IF_ERROR(Agree(Connect(), comm_.world.get()));
    HADAL_RETURN_IF_ERROR(AgreeOnKvBlocks());
    HADAL_RETURN_IF_ERROR(Agree(LoadModel(), comm_.world.get()));
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
    const int threads = options_.threads > 0 ? options_.threads
                                             : std::max(1, UsableCores() / place_.local_ranks);
    HADAL_ASSIGN_OR_RETURN(const DType activations, ActivationsOf(options_.activations, config_));
    HADAL_ASSIGN_OR_RETURN(backend_, MakeBackend({.name = options_.backend, .isa = options_.isa,
                                                  .threads = threads,
                                                  .local_rank = place_.local_rank,
                                                  .activations = activations}));
    if (options_.max_step_tokens == 0) options_.max_step_tokens = options_.backend == "cpu" ? 512 : 4096;
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
    comm_.world->AllGather(&own, all.data(), sizeof(own));
    return static_cast<int>(std::count(all.begin(), all.end(), own));
  }

  Status PlanCache() {
    const int64_t available = backend_->AvailableBytes(sharers_);
    if (options_.expanded_tokens < 0) options_.expanded_tokens = ExpandedTokens(available / 8);
    const MemoryPlan plan = PlanMemory(config_, layout_, *backend_, ModelConfigOptions(1));
    recorded_bytes_ = plan.recorded;
    HADAL_ASSIGN_OR_RETURN(capacity_.kv_blocks,
                           DecideKvBlocks(config_, plan, {options_.kv_blocks, options_.kv_memory},
                                          available));
    spdlog::info("{}; layout {} x {}; memory: {}", backend_->name(), layout_.tensor_parallel,
                 layout_.data_parallel, DescribeMemoryPlan(plan, capacity_.kv_blocks, available));
    return OkStatus();
  }

  // Positions of a prompt whose expanded keys and values `bytes` hold, 4096 at most.
  int32_t ExpandedTokens(int64_t bytes) const {
    constexpr int32_t kMost = 4096;
    ModelOptions options = ModelConfigOptions(1);
    options.expanded_tokens = kMost;
    const int64_t all = ExpandedPrompt::Bytes(config_, layout_, *backend_, options);
    return all <= bytes ? kMost : static_cast<int32_t>(bytes / std::max<int64_t>(all / kMost, 1));
  }

  Status Connect() {
    HADAL_ASSIGN_OR_RETURN(comm_, ConnectBackend(comm_, *backend_, layout_, options_.step_timeout_s));
    return OkStatus();
  }

  // The rank with the least memory decides.
  Status AgreeOnKvBlocks() {
    std::vector<int32_t> all(place_.world);
    comm_.world->AllGather(&capacity_.kv_blocks, all.data(), sizeof(int32_t));
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
  StatusOr<CommGroup> comm = MakeMpiCommGroup({.tensor_parallel = options.tensor_parallel,
                                               .data_parallel = options.data_parallel,
                                               .timeout_s = options.step_timeout_s});
  if (!comm.ok()) {
    if (place.rank == 0) spdlog::error("{}", comm.status().message());
    return 1;
  }
  try {
    const Status status = Worker(options, place, std::move(comm).value()).Run();
    if (status.ok()) return 0;
    spdlog::error("{}", status.message());
    return 1;
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
