#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/layout.h"
#include "common/status.h"
#include "common/step_plan.h"
#include "kernels/backend.h"
#include "worker/comm/communicator.h"
#include "worker/model/model.h"
#include "worker/runtime/slot_table.h"

namespace hadal {

// Executes the plans of one rank, in order: model forward, logits, sampling. All ranks of the world
// run the same plans. One thread.
class StepRunner {
 public:
  // Logits are fetched in pieces of at most this many rows (ModelOptions::max_step_logits).
  static constexpr int kLogitRows = 32;

  // `model` and `backend` outlive the runner.
  StepRunner(Model* model, Backend* backend, CommGroup comm, const Layout& layout,
             const GroupCapacity& capacity);

  // A new epoch: no slot is taken. Ids of vocab_limit and above are never drawn.
  void Reset(int32_t vocab_limit);

  // Runs one step. The result is complete on world rank 0, whose groups are all D; on other ranks it
  // holds nothing of use. INVALID_ARGUMENT when the plan is not possible here. Throws CommError.
  StatusOr<StepResult> Run(const StepPlan& plan);

 private:
  GroupResult SampleGroup(const GroupPlan& plan, const Batch& batch);
  void ScoreLogits(const GroupPlan& plan, int first, int count, GroupResult* result);
  void ShareSampledTokens(const GroupPlan& plan, GroupResult* result);
  Status GatherGroups(GroupResult own, StepResult* result);

  // What becomes of one logit row.
  struct LogitUse {
    int32_t row = 0;        // index in the plan's rows
    int32_t target = -1;    // prompt log-probability of this token, for
    int32_t list = -1;      // this entry of GroupResult::prompt_logprobs; or
    int32_t position = -1;  // position of the token to draw
  };
  std::vector<LogitUse> ListLogitUses(const GroupPlan& plan) const;

  Model* const model_;
  Backend* const backend_;
  const CommGroup comm_;
  const Layout layout_;
  int32_t vocab_limit_;
  SlotTable slots_;
  Batch batch_;
  std::vector<float> logits_;    // [kLogitRows, vocab_size]
  std::vector<LogitUse> uses_;   // [batch_.logit_tokens]
};

}  // namespace hadal
