// hadal-exchange-bench: the routed experts of one layer when tokens travel between ranks.
#include <mpi.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <random>

#include "common/dummy_checkpoint.h"
#include "worker/backends.h"
#include "worker/comm/mpi_communicator.h"
#include "worker/bench/drawn_experts.h"
#include "worker/model/expert_exchange.h"
#include "worker/model/fixed_exchange.h"
#include "worker/model/workspace.h"

namespace hadal {
namespace {

constexpr const char* kDescription =
    "Times the routed experts of one layer with a D group on every rank: tokens choose experts evenly,\n"
    "travel to the ranks that own them, and their outputs come back.\n\n"
    "  mpirun --bind-to none -n 2 hadal-exchange-bench --model DIR --backend cuda\n\n"
    "DIR needs a config.json only. One JSON line for each number of tokens: us is the time of a layer's\n"
    "exchange and experts on the slowest rank, from call to end, without the shared expert, when every\n"
    "token goes to the ranks that it needs; fixed_us when all tokens go everywhere, and\n"
    "fixed_replayed_us when that is replayed; experts_us what computing the rows that arrive takes\n"
    "alone.";

constexpr int kRepeats = 5;  // the median counts

struct Options {
  std::string model_dir;
  std::string backend = "cuda";
  std::vector<int> tokens = {1, 8, 64, 128, 4096};
  int iterations = 20;
};

class ExchangeBench {
 public:
  ExchangeBench(Options options, const MpiPlace& place, CommGroup comm)
      : options_(std::move(options)), place_(place), comm_(std::move(comm)) {}

  Status Load() {
    layout_ = {1, place_.world, place_.rank};
    HADAL_ASSIGN_OR_RETURN(config_, LoadModelConfig(options_.model_dir));
    config_.n_layers = 1;
    config_.n_dense_layers = 0;
    config_.vocab_size = 1024;
    config_.max_seq_len = 1024;
    HADAL_RETURN_IF_ERROR(ValidateLayout(config_, layout_));
    HADAL_ASSIGN_OR_RETURN(const DType activations, ActivationsOf("auto", config_));
    HADAL_ASSIGN_OR_RETURN(backend_, MakeBackend({.name = options_.backend, .threads = 1,
                                                  .local_rank = place_.local_rank,
                                                  .activations = activations}));
    HADAL_ASSIGN_OR_RETURN(comm_, ConnectBackend(comm_, *backend_, layout_, /*timeout_s=*/60));
    HADAL_ASSIGN_OR_RETURN(auto checkpoint, MakeDummyCheckpoint(config_, /*seed=*/0));
    HADAL_ASSIGN_OR_RETURN(weights_, LoadWeights(config_, layout_, /*shared=*/{}, *checkpoint, backend_.get(), nullptr));
    moe_ = &weights_.layers[0].moe;
    const int most = *std::max_element(options_.tokens.begin(), options_.tokens.end());
    ModelOptions model{.kv_blocks = 1, .max_step_tokens = most, .max_rows = 1, .max_step_logits = 1};
    backend_->Reserve(StepOpLimits(config_, layout_, model));
    exchange_ = std::make_unique<ExpertExchange>(config_, backend_.get(), comm_,
                                                 ExchangeRows(config_, layout_, model));
    model.fixed_exchange = true;
    fixed_ = std::make_unique<FixedExchange>(config_, layout_, backend_.get(), comm_, model);
    local_index_ = Upload(ExpertPlacement(config_.n_routed_experts, place_.world).LocalIndices(place_.rank));
    return OkStatus();
  }

  void Run() {
    for (const int tokens : options_.tokens) {
      const double us = TimeExchange(tokens);
      const double fixed_us = TimeFixed(tokens, /*replayed=*/false);
      const double replayed_us = TimeFixed(tokens, /*replayed=*/true);
      const double experts_us = TimeExperts(tokens);
      if (place_.rank != 0) continue;
      const nlohmann::json line = {
          {"collective", "expert_exchange"}, {"dtype", DTypeName(config_.dtype)}, {"dim", config_.dim},
          {"experts", config_.n_routed_experts}, {"tokens", tokens}, {"ranks", place_.world},
          {"communicator", "hadal"}, {"us", us}, {"fixed_us", fixed_us},
          {"fixed_replayed_us", replayed_us}, {"experts_us", experts_us}};
      fmt::print("{}\n", line.dump());
      std::fflush(stdout);
    }
  }

 private:
  double TimeExchange(int tokens) {
    std::mt19937 rng(static_cast<uint32_t>(place_.rank + 1));
    const Rows rows(this, DrawExperts(config_, tokens, &rng));
    const std::vector<uint8_t> served(static_cast<size_t>(tokens), 1);
    return Median([&] {
      exchange_->Run(*moe_, {.x = rows.x->data, .ids = rows.ids->as<int32_t>(),
                             .weights = rows.weights->as<float>(),
                             .local_index = local_index_->as<int32_t>(), .served = served.data(),
                             .count = tokens, .out = rows.out->data});
    });
  }

  double TimeFixed(int tokens, bool replayed) {
    std::mt19937 rng(static_cast<uint32_t>(place_.rank + 1));
    const Rows rows(this, DrawExperts(config_, tokens, &rng));
    const uint64_t key = replayed ? ++last_key_ : 0;  // of these buffers
    return Median([&] {
      backend_->Replay(key, [&] {
        fixed_->Run(*moe_, {.x = rows.x->data, .ids = rows.ids->as<int32_t>(),
                            .weights = rows.weights->as<float>(),
                            .local_index = local_index_->as<int32_t>(), .count = tokens,
                            .out = rows.out->data});
      });
    });
  }

  // Moe() of what arrives at this rank when every rank sends `tokens`.
  double TimeExperts(int tokens) {
    const auto top_k = static_cast<size_t>(config_.n_activated_experts);
    const ExpertPlacement placement(config_.n_routed_experts, place_.world);
    std::vector<int32_t> own;
    for (int rank = 0; rank < place_.world; ++rank) {
      std::mt19937 rng(static_cast<uint32_t>(rank + 1));
      std::vector<int32_t> ids = DrawExperts(config_, tokens, &rng);
      for (auto& id : ids) id = placement.owner(id) == place_.rank ? id : -1;
      for (auto row = ids.begin(); row != ids.end(); row += static_cast<int64_t>(top_k)) {
        const auto end = row + static_cast<int64_t>(top_k);
        if (std::any_of(row, end, [](int32_t id) { return id >= 0; })) own.insert(own.end(), row, end);
      }
    }
    const Rows rows(this, own);
    const auto count = static_cast<int>(own.size() / top_k);
    return Median([&] {
      if (count == 0) return;
      backend_->Moe({.x = rows.x->data, .ids = rows.ids->as<int32_t>(),
                     .weights = rows.weights->as<float>(),
                     .local_index = local_index_->as<int32_t>(), .w13 = moe_->w13.get(),
                     .w2 = moe_->w2.get(), .shared = {}, .out = rows.out->data, .tokens = count,
                     .top_k = static_cast<int>(top_k),
                     .experts = static_cast<int>(config_.n_routed_experts), .dim = config_.dim,
                     .width = config_.moe_inter_dim});
    });
  }

  // Tokens of given experts.
  struct Rows {
    Rows(ExchangeBench* bench, const std::vector<int32_t>& experts) {
      const size_t count = experts.size() / static_cast<size_t>(bench->config_.n_activated_experts);
      const size_t values = std::max<size_t>(1, count) * static_cast<size_t>(bench->config_.dim);
      const bool f32 = bench->backend_->activation_dtype() == DType::kF32;
      std::mt19937 rng(7);
      std::normal_distribution<float> normal;
      std::vector<float> full(f32 ? values : 0);
      std::vector<bf16_t> half(f32 ? 0 : values);
      for (float& v : full) v = normal(rng);
      for (bf16_t& v : half) v = FloatToBf16(normal(rng));
      x = f32 ? bench->Upload(full) : bench->Upload(half);
      out = f32 ? bench->Upload(full) : bench->Upload(half);
      ids = bench->Upload(experts);
      weights = bench->Upload(std::vector<float>(experts.size(), 0.1f));
    }
    BufferPtr x, out, ids, weights;
  };

  template <typename T>
  BufferPtr Upload(const std::vector<T>& values) {
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
    BufferPtr buffer = backend_->Allocate(std::max<int64_t>(bytes, 1));
    backend_->CopyToDevice(buffer->data, values.data(), bytes);
    return buffer;
  }

  // Microseconds of one call on the slowest rank.
  double Median(const std::function<void()>& call) {
    std::vector<double> times;
    for (int repeat = 0; repeat <= kRepeats; ++repeat) {
      comm_.world->Barrier();
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < options_.iterations; ++i) call();
      backend_->Synchronize();
      const double own = std::chrono::duration<double, std::micro>(
          std::chrono::steady_clock::now() - start).count() / options_.iterations;
      std::vector<double> all(static_cast<size_t>(place_.world));
      comm_.world->AllGather(&own, all.data(), sizeof(own));
      if (repeat > 0) times.push_back(*std::max_element(all.begin(), all.end()));
    }
    std::sort(times.begin(), times.end());
    return times[kRepeats / 2];
  }

  const Options options_;
  const MpiPlace place_;
  CommGroup comm_;
  Layout layout_;
  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
  ModelWeights weights_;
  MoeWeights* moe_ = nullptr;
  std::unique_ptr<ExpertExchange> exchange_;
  std::unique_ptr<FixedExchange> fixed_;
  BufferPtr local_index_;
  uint64_t last_key_ = 0;
};

Status Measure(const Options& options, const MpiPlace& place) {
  HADAL_ASSIGN_OR_RETURN(CommGroup comm, MakeMpiCommGroup({.data_parallel = place.world, .timeout_s = 60}));
  ExchangeBench bench(options, place, std::move(comm));
  HADAL_RETURN_IF_ERROR(bench.Load());
  bench.Run();
  return OkStatus();
}

int Main(int argc, char** argv) {
  const MpiPlace place = GetMpiPlace();
  Options options;
  CLI::App app(kDescription, "hadal-exchange-bench");
  app.add_option("--model", options.model_dir, "directory with a config.json")->required();
  app.add_option("--backend", options.backend, "what computes")
      ->check(CLI::IsMember(BackendNames()))
      ->capture_default_str();
  app.add_option("--tokens", options.tokens, "tokens of each rank")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--iterations", options.iterations, "calls in a row")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return place.rank == 0 ? app.exit(e) : e.get_exit_code();
  }
  Status status;
  try {
    status = Measure(options, place);
  } catch (const std::exception& e) {
    status = Unavailable("{}", e.what());
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "hadal-exchange-bench: rank %d: %s\n", place.rank, status.ToString().c_str());
  MPI_Abort(MPI_COMM_WORLD, 1);
  return 1;
}

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  const int exit_code = hadal::Main(argc, argv);
  MPI_Finalize();
  return exit_code;
}
