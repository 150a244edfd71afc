// hadal-model-bench: prefill and decode of one rank without server or network, against the ceilings
// of this machine measured in the same run.
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "common/converted_checkpoint.h"
#include "common/dummy_checkpoint.h"
#include "worker/backends.h"
#include "worker/model/model.h"
#include "worker/model/step_cost.h"
#include "worker/model/step_inputs.h"
#include "worker/timed_backend.h"

namespace hadal {
namespace {

struct BenchOptions {
  std::string model_dir;
  std::string device = "cpu";
  bool dummy = false;      // random weights, only the config is read
  std::string isa;
  int threads = 2;
  std::vector<int> batches = {1, 4, 16};
  std::vector<int> prompts = {512};
  std::vector<int> prompt_batches = {1};  // prompts of one prefill step
  int context = 128;       // tokens in the cache when decoding starts
  int decode_steps = 16;
  int repeats = 3;         // the best of
  bool json = false;
  bool ops = false;        // a clock around each op
};

struct StepTime {
  double seconds = 1e30;
  double host_seconds = 0;  // until everything is launched; the rest of it waits for the device
  std::vector<OpTime> ops;  // with --ops
  bool operator<(const StepTime& other) const { return seconds < other.seconds; }
};

// One measured shape.
struct Measurement {
  std::string phase;
  int sequences = 0;
  int tokens_per_step = 0;
  StepTime time;           // of one step, best of the repeats
  StepCost cost;
};

class ModelBench {
 public:
  explicit ModelBench(BenchOptions options) : options_(std::move(options)) {}

  Status Load() {
    HADAL_ASSIGN_OR_RETURN(config_, LoadModelConfig(options_.model_dir));
    HADAL_ASSIGN_OR_RETURN(auto checkpoint,
                           options_.dummy ? MakeDummyCheckpoint(config_, /*seed=*/0)
                                          : OpenCheckpoint(options_.model_dir, config_, Layout{}));
    HADAL_ASSIGN_OR_RETURN(backend_, MakeBackend({.name = options_.device, .isa = options_.isa,
                                                  .threads = options_.threads,
                                                  .weights = config_.dtype}));
    if (options_.ops) {
      auto timed = std::make_unique<TimedBackend>(std::move(backend_));
      timed_ = timed.get();
      backend_ = std::move(timed);
    }
    const int sequences = *std::max_element(options_.batches.begin(), options_.batches.end());
    const int prompt = *std::max_element(options_.prompts.begin(), options_.prompts.end());
    const int prompts =
        *std::max_element(options_.prompt_batches.begin(), options_.prompt_batches.end());
    const int tokens = std::max(prompt, options_.context + options_.decode_steps *
                                                               (options_.repeats + 1));
    const int rows = std::max(sequences, prompts);
    blocks_per_sequence_ = tokens / kBlockSize + 1;
    const ModelOptions model_options{
        .kv_blocks = rows * blocks_per_sequence_,
        .max_step_tokens = std::max({prompts * prompt, options_.context, sequences}),
        .max_rows = rows,
        .max_step_logits = StepInputs::PaddedTokens({.max_step_tokens = rows, .max_rows = rows}),
        .replays = backend_->replays()};
    const CommGroup comm = HostCommGroup(MakeSelfCommunicator(), MakeSelfCommunicator());
    HADAL_ASSIGN_OR_RETURN(model_, Model::Load(config_, Layout{}, *checkpoint, backend_.get(), comm,
                                               model_options, nullptr));
    return OkStatus();
  }

  std::vector<Measurement> Run() {
    std::vector<Measurement> results;
    for (int prompt : options_.prompts) {
      for (int batch : options_.prompt_batches) results.push_back(Prefill(prompt, batch));
    }
    for (int batch : options_.batches) results.push_back(Decode(batch));
    return results;
  }

  const Backend& backend() const { return *backend_; }

 private:
  void Append(int sequence, int start, int count, RowKind kind, Batch* batch) {
    const auto first = static_cast<int32_t>(batch->tokens.size());
    std::uniform_int_distribution<int32_t> token(0, static_cast<int32_t>(config_.vocab_size) - 1);
    for (int i = 0; i < count; ++i) {
      batch->tokens.push_back(token(rng_));
      batch->positions.push_back(start + i);
    }
    batch->rows.push_back({.first_token = first, .num_tokens = count, .start_pos = start, .kind = kind,
                           .blocks = tables_.data() + sequence * blocks_per_sequence_});
    batch->logit_tokens.push_back(first + count - 1);
  }

  StepTime Step(const Batch& batch) {
    const auto start = std::chrono::steady_clock::now();
    const auto seconds = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    model_->Prepare(batch);
    backend_->Replay(model_->replay_key(), [&] {
      model_->Forward();
      model_->Logits(0, model_->logit_rows());
    });
    const double host = seconds();
    backend_->Synchronize();
    return {seconds(), host};
  }

  // Of one step, when `steps` ran since the last call.
  std::vector<OpTime> TakeOps(int steps) {
    if (timed_ == nullptr) return {};
    std::vector<OpTime> ops = timed_->TakeTimes();
    for (OpTime& op : ops) {
      op.calls /= steps;
      op.seconds /= steps;
    }
    return ops;
  }

  Measurement Prefill(int tokens, int sequences) {
    tables_.resize(sequences * blocks_per_sequence_);
    std::iota(tables_.begin(), tables_.end(), 0);
    Batch batch;
    for (int s = 0; s < sequences; ++s) Append(s, 0, tokens, RowKind::kPrefill, &batch);
    StepTime best;
    for (int i = 0; i <= options_.repeats; ++i) {
      StepTime time = Step(batch);
      time.ops = TakeOps(1);
      best = std::min(best, time);
    }
    StepShape shape;
    shape.prefill.assign(sequences, {.start_pos = 0, .num_tokens = tokens});
    return {"prefill", sequences, sequences * tokens, best, CountStep(config_, Layout{}, *backend_, shape)};
  }

  // A decode step's time is the mean over decode_steps; the best mean counts.
  Measurement Decode(int sequences) {
    tables_.resize(sequences * blocks_per_sequence_);
    std::iota(tables_.begin(), tables_.end(), 0);
    for (int s = 0; s < sequences; ++s) {
      Batch batch;
      Append(s, 0, options_.context, RowKind::kPrefill, &batch);
      Step(batch);
    }
    TakeOps(1);
    StepTime best;
    int position = options_.context;
    for (int i = 0; i <= options_.repeats; ++i) {
      StepTime sum{.seconds = 0};
      for (int step = 0; step < options_.decode_steps; ++step, ++position) {
        Batch batch;
        for (int s = 0; s < sequences; ++s) Append(s, position, 1, RowKind::kDecode, &batch);
        const StepTime time = Step(batch);
        sum.seconds += time.seconds / options_.decode_steps;
        sum.host_seconds += time.host_seconds / options_.decode_steps;
      }
      sum.ops = TakeOps(options_.decode_steps);
      best = std::min(best, sum);
    }
    StepShape shape;
    shape.decode_contexts.assign(sequences, position);
    return {"decode", sequences, sequences, best, CountStep(config_, Layout{}, *backend_, shape)};
  }

  BenchOptions options_;
  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
  TimedBackend* timed_ = nullptr;  // backend_, with --ops
  std::unique_ptr<Model> model_;
  int blocks_per_sequence_ = 0;
  std::vector<int32_t> tables_;
  std::mt19937 rng_{1};
};

void PrintOps(const Measurement& m) {
  double rest = m.time.seconds;
  const auto line = [&](const std::string& op, int calls, double seconds) {
    fmt::print("  {:<26} {:>4} x {:>9.3f} ms {:>6.1f} %\n", op, calls, seconds * 1e3,
               100 * seconds / m.time.seconds);
  };
  for (const OpTime& op : m.time.ops) {
    line(op.op, op.calls, op.seconds);
    rest -= op.seconds;
  }
  line("between ops", 1, rest);
}

nlohmann::json OpsJson(const std::vector<OpTime>& ops) {
  auto out = nlohmann::json::array();
  for (const OpTime& op : ops) {
    out.push_back({{"op", op.op}, {"calls", op.calls}, {"ms", op.seconds * 1e3}});
  }
  return out;
}

void Print(const std::vector<Measurement>& results, const BenchOptions& options, const Backend& backend) {
  const auto [bandwidth, gflops] = MeasureCeilings(options.device, options.threads);
  nlohmann::json out = {{"backend", backend.name()}, {"threads", options.threads},
                        {"read_GBs", bandwidth}, {"matmul_GFLOPs", gflops}, {"results", {}}};
  if (!options.json) {
    fmt::print("{}\nread bandwidth {:.1f} GB/s, matmul ceiling {:.0f} GFLOP/s\n\n", backend.name(),
               bandwidth, gflops);
    fmt::print("{:<8} {:>5} {:>7} {:>9} {:>8} {:>9} {:>8} {:>9} {:>8} {:>8}\n", "phase", "seqs",
               "tokens", "ms", "host us", "tok/s", "GB/s", "GFLOP/s", "% read", "% flops");
  }
  for (const Measurement& m : results) {
    const double seconds = m.time.seconds;
    const double host_us = m.time.host_seconds * 1e6;
    const double gbs = m.cost.bytes / seconds / 1e9;
    const double rate = m.cost.flops / seconds / 1e9;
    if (!options.json) {
      fmt::print("{:<8} {:>5} {:>7} {:>9.2f} {:>8.0f} {:>9.1f} {:>8.1f} {:>9.1f} {:>8.1f} {:>8.1f}\n",
                 m.phase, m.sequences, m.tokens_per_step, seconds * 1e3, host_us,
                 m.tokens_per_step / seconds, gbs, rate, 100 * gbs / bandwidth, 100 * rate / gflops);
      if (options.ops) PrintOps(m);
    }
    out["results"].push_back({{"phase", m.phase}, {"sequences", m.sequences},
                              {"tokens", m.tokens_per_step}, {"ms", seconds * 1e3},
                              {"host_us", host_us},
                              {"tokens_per_s", m.tokens_per_step / seconds}, {"GBs", gbs},
                              {"GFLOPs", rate}, {"percent_read", 100 * gbs / bandwidth},
                              {"percent_matmul", 100 * rate / gflops}});
    if (options.ops) out["results"].back()["ops"] = OpsJson(m.time.ops);
  }
  if (options.json) fmt::print("{}\n", out.dump());
}

}  // namespace
}  // namespace hadal

int main(int argc, char** argv) {
  hadal::BenchOptions options;
  CLI::App app("Times prefill and decode steps of one rank, in percent of this machine's read bandwidth "
               "and matrix-product rate, both measured in the same run.", "hadal-model-bench");
  app.add_option("--model", options.model_dir, "Hugging Face model directory")->required();
  app.add_option("--device", options.device, "what computes")
      ->check(CLI::IsMember(hadal::BackendNames()))
      ->capture_default_str();
  app.add_flag_callback("--dummy", [&] { options.dummy = true; },
                        "random weights: --model needs a config.json only");
  app.add_option("--threads", options.threads, "threads")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--cpu-isa", options.isa, "instruction set (default: the best of this machine)");
  app.add_option("--batch", options.batches, "decode batch sizes")->check(CLI::Range(1, 4096))->capture_default_str();
  app.add_option("--prompt", options.prompts, "prefill lengths")->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("--prompt-batch", options.prompt_batches, "prompts of one prefill step")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--context", options.context, "tokens before decoding")->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("--steps", options.decode_steps, "decode steps per repeat")->check(CLI::Range(1, 4096))->capture_default_str();
  app.add_option("--repeats", options.repeats, "the best of this many counts")->check(CLI::Range(1, 100))->capture_default_str();
  app.add_flag("--json", options.json, "one JSON object");
  app.add_flag("--ops", options.ops,
               "also the time of each kind of op; steps then run op by op and are not replayed");
  CLI11_PARSE(app, argc, argv);
  hadal::ModelBench bench(options);
  if (hadal::Status status = bench.Load(); !status.ok()) {
    fmt::print(stderr, "hadal-model-bench: {}\n", status.message());
    return 1;
  }
  const auto results = bench.Run();
  hadal::Print(results, options, bench.backend());
  return 0;
}
