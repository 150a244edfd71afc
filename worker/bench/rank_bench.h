#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/model_config.h"
#include "common/status.h"
#include "worker/model/model.h"
#include "worker/model/step_cost.h"
#include "worker/bench/simulated_ranks.h"
#include "worker/bench/timed_backend.h"

namespace hadal {

struct RankBenchOptions {
  std::string model_dir;
  std::string device = "cpu";
  bool dummy = false;      // random weights, only the config is read
  std::string isa;
  int threads = 2;
  std::string simulated_layout;  // "T,D": one rank of that; empty: all of the model
  int simulated_rank = 0;
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
  std::vector<OpTime> ops;  // with RankBenchOptions::ops
  bool operator<(const StepTime& other) const { return seconds < other.seconds; }
};

// One measured shape.
struct Measurement {
  std::string phase;
  int sequences = 0;        // of one D group
  int tokens_per_step = 0;  // of one D group
  StepTime time;            // of one step, best of the repeats
  StepCost cost;            // of this rank
};

// Prefill and decode steps of one rank without a server.
class RankBench {
 public:
  explicit RankBench(RankBenchOptions options) : options_(std::move(options)) {}

  // The config and the device, of which nothing is taken yet.
  Status Open();
  // Opens what is not open yet. INVALID_ARGUMENT for more positions than the model has,
  // FAILED_PRECONDITION with the numbers when the rank does not fit into memory.
  Status Load();
  std::vector<Measurement> Run();

  const Backend& backend() const { return *backend_; }
  const Layout& layout() const { return layout_; }
  // "weights 588.1 MiB + KV ...".
  const std::string& memory() const { return memory_; }
  // Of the row that the last step computed first.
  std::vector<float> LastLogits();

 private:
  ModelOptions Sizes() const;
  Status CheckPositions(int decoded) const;
  Status PlanMemoryOf(const ModelOptions& model_options);
  void Append(int sequence, int start, int count, RowKind kind, Batch* batch);
  StepTime Step(const Batch& batch);
  std::vector<OpTime> TakeOps(int steps);
  Measurement Prefill(int tokens, int sequences);
  void FillContexts(int sequences);
  Measurement Decode(int sequences);
  StepCost Count(StepShape shape) const;

  const RankBenchOptions options_;
  ModelConfig config_;
  Layout layout_;
  std::unique_ptr<Backend> backend_;
  TimedBackend* timed_ = nullptr;  // backend_, with RankBenchOptions::ops
  std::unique_ptr<SimulatedRanks> others_;  // null: there are none
  std::unique_ptr<Model> model_;
  std::string memory_;
  bool fixed_exchange_ = false;
  int blocks_per_sequence_ = 0;
  int max_step_tokens_ = 0;
  std::vector<int32_t> tables_;
  const float* logits_ = nullptr;
  std::mt19937 rng_{1};
};

}  // namespace hadal
