#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/layout.h"
#include "common/model_config.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "common/step_plan.h"
#include "kernels/backend.h"
#include "worker/comm/communicator.h"

namespace hadal {

// Consecutive tokens of one sequence.
struct BatchRow {
  int32_t first_token = 0;      // index in Batch::tokens
  int32_t num_tokens = 0;
  int32_t start_pos = 0;
  RowKind kind = RowKind::kPrefill;
  const int32_t* blocks = nullptr;  // block table, covers start_pos + num_tokens positions
  uint64_t sequence = 0;        // unlike that of any other sequence, ever; 0: not told
};

// What no D group of a step exceeds; the same on every rank of the world.
struct StepBounds {
  int32_t tokens = 0;
  int64_t context = 0;           // positions of a sequence
  bool decodes_only = false;     // every row is one generated token and has the next one drawn
};

// What this rank's D group computes in one step. May be empty while other groups work.
struct Batch {
  // Ids; -1 - s stands for Model::last_tokens()[s].
  std::vector<int32_t> tokens;
  std::vector<int32_t> positions;    // [tokens]
  std::vector<BatchRow> rows;        // kDecode rows first
  std::vector<int32_t> logit_tokens; // indices in tokens whose logits are wanted, ascending
  StepBounds step;                   // at least those of this batch
};

struct ModelOptions {
  int32_t kv_blocks = 0;         // of kBlockSize tokens
  int32_t max_step_tokens = 0;   // upper bound of Batch::tokens
  int32_t max_rows = 0;          // upper bound of Batch::rows, and the number of slots
  int32_t max_step_logits = 0;   // upper bound of one Logits() call's rows
  int32_t expanded_tokens = 0;   // positions of a prompt that ExpandedPrompt keeps
  // Steps that only decode are padded to few shapes: for backends whose Replay() repeats.
  bool replays = false;
  // With D > 1: tokens travel in a FixedExchange and not in an ExpertExchange; see FixedExchangePays().
  bool fixed_exchange = false;
};

// What a rank needs, in bytes, known from the config alone.
struct MemoryPlan {
  int64_t weights = 0;       // packed
  int64_t kv_per_block = 0;  // all layers
  int64_t workspace = 0;     // activations and scratch for max_step_tokens, ExpandedPrompt
  int64_t expanded = 0;      // of the workspace: ExpandedPrompt
  int64_t recorded = 0;      // what a backend that replays may take for the steps that it records
};
MemoryPlan PlanMemory(const ModelConfig& config, const Layout& layout, const Backend& backend,
                      const ModelOptions& options);

// One rank's shard of a model with its KV cache. One thread.
class Model {
 public:
  // Bytes of weights read so far, of the total for this rank.
  using Progress = std::function<void(int64_t done, int64_t total)>;

  // REQUIRES: ValidateCheckpoint and ValidateLayout passed. `backend` outlives the model.
  // DATA_LOSS names the tensor for values no weight can have (NaN encodings of e4m3).
  static StatusOr<std::unique_ptr<Model>> Load(const ModelConfig& config, const Layout& layout,
                                               const Checkpoint& checkpoint, Backend* backend,
                                               CommGroup comm, const ModelOptions& options,
                                               const Progress& progress);
  virtual ~Model() = default;

  // A step is Prepare(), then Forward(), then Logits(), on every rank of the world, with the same
  // Batch on the ranks of one D group. Forward() and Logits() may run inside Backend::Replay() with
  // keys made of replay_key().

  // Brings the batch to the backend. The batch may change on return.
  virtual void Prepare(const Batch& batch) = 0;
  // The padded shape of the prepared step, the same on every rank of the world; 0: it cannot be
  // replayed.
  virtual uint64_t replay_key() const = 0;
  // A step of every shape with a key. A Batch of nothing but one of them is that step for nobody: it
  // writes no cache.
  virtual std::vector<StepBounds> replay_shapes() const = 0;
  // Rows of logits, padding included; those of the batch come first.
  virtual int logit_rows() const = 0;

  // Runs all layers and writes the KV cache. Throws CommError.
  virtual void Forward() = 0;

  // Complete logits of logit_tokens[first, first + count) of the last Forward, on every rank of the
  // D group: [count, vocab_size] float, backend memory, valid until the next call. Of a replayable
  // step each row may be asked for once.
  virtual const float* Logits(int first, int count) = 0;

  // Backend memory [max_rows]: what ids below zero stand for.
  virtual int32_t* last_tokens() = 0;

  virtual const ModelConfig& config() const = 0;
};

}  // namespace hadal
