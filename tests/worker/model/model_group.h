#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "worker/model/model.h"

namespace hadal::testing {

// Runs fn(rank) on `ranks` threads and rethrows the first exception.
void RunRanks(int ranks, const std::function<void(int)>& fn);

// Consecutive tokens of one sequence, run in one step.
struct RowSpec {
  int sequence = 0;
  int start = 0;
  int count = 0;
  RowKind kind = RowKind::kPrefill;
};
// [data_parallel] rows of each group, kDecode first.
using StepSpec = std::vector<std::vector<RowSpec>>;

using TokenLists = std::vector<std::vector<int32_t>>;

// [sequence][position] the logits behind that token; empty where it was not run.
using SequenceLogits = std::vector<std::vector<std::vector<float>>>;

struct ModelGroupOptions {
  int tensor_parallel = 1;
  int data_parallel = 1;
  std::string isa = "portable";  // of the CPU; or "cuda": every rank on device 0
  std::string activations = "auto";  // of "cuda", see ActivationsOf()
  int threads = 1;           // of each rank
  int max_step_tokens = 0;
  int kv_blocks = 0;         // of each D group
  // On the CPU; a CUDA device has what pays there.
  bool replays = false;
  bool fixed_exchange = false;
};

// Whether ranks can compute on a GPU; says so when not.
bool HaveCudaDevice();

// Every rank of one layout in this process, each on a thread of its own.
class ModelGroup {
 public:
  // Throws std::runtime_error with the Status's text.
  ModelGroup(const std::string& model_dir, const ModelGroupOptions& options);

  // Runs the steps on all ranks and returns the logits of every token. Block tables are drawn from
  // `seed`. Throws when the ranks of a D group disagree in a bit.
  SequenceLogits Run(const TokenLists& sequences, const std::vector<StepSpec>& steps, uint64_t seed);

  // How many steps had a shape that can be replayed.
  int replayable_steps() const { return replayable_steps_; }

  const ModelConfig& config() const { return config_; }
  const ModelGroupOptions& options() const { return options_; }
  int world() const { return static_cast<int>(models_.size()); }
  Layout layout(int rank) const {
    return {options_.tensor_parallel, options_.data_parallel, rank};
  }
  Model* model(int rank) { return models_[rank].get(); }
  Backend* backend(int rank) { return backends_[rank].get(); }
  const CommGroup& comm(int rank) const { return comms_[rank]; }

 private:
  void RunRank(int rank, const TokenLists& sequences, const std::vector<StepSpec>& steps,
               SequenceLogits* logits);
  void DrawBlockTables(const TokenLists& sequences, uint64_t seed);

  const ModelGroupOptions options_;
  ModelConfig config_;
  std::vector<CommGroup> comms_;                    // [ranks]
  std::vector<std::unique_ptr<Backend>> backends_;  // [ranks]
  std::vector<std::unique_ptr<Model>> models_;      // [ranks]
  std::vector<const float*> replayed_logits_;       // [ranks] where replayed steps leave them
  std::vector<std::vector<int32_t>> tables_;        // [sequence]
  int replayable_steps_ = 0;                        // of rank 0
  uint64_t first_sequence_ = 0;                     // BatchRow::sequence of the first one
};

// log softmax(logits)[token].
double LogProb(const std::vector<float>& logits, int32_t token);
int32_t ArgMax(const std::vector<float>& logits);

}  // namespace hadal::testing
