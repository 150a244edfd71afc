#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "common/layout.h"
#include "common/status.h"
#include "common/step_plan.h"
#include "kernels/backend.h"
#include "worker/comm/communicator.h"
#include "worker/model/model.h"
#include "worker/model/staging.h"
#include "worker/runtime/slot_table.h"

namespace hadal {

// Executes the plans of one rank, in order: model forward, logits, sampling. All ranks of the world
// run the same plans. A step may be launched while the one before it runs; its tokens stay in the
// backend's memory. One thread.
class StepRunner {
 public:
  static constexpr int kMaxInFlight = 2;

  // ModelOptions::max_step_logits for this backend.
  static int LogitRows(const Backend& backend, int max_slots);

  // `model` and `backend` outlive the runner.
  StepRunner(Model* model, Backend* backend, CommGroup comm, const Layout& layout,
             const GroupCapacity& capacity);

  // Runs every forward pass that the backend can repeat, once and for nobody, so that none is recorded
  // while streams wait; later Resets do the same with what draws, when their limit is new. Every rank
  // calls it, before the first Reset. `progress`, of steps, may be null. Returns how many there are.
  // Throws CommError.
  int WarmUp(const Model::Progress& progress);

  // A new epoch: no slot is taken, steps in flight are forgotten. Ids of vocab_limit and above are
  // never drawn. Every rank calls it; after WarmUp() ranks may wait for each other.
  void Reset(int32_t vocab_limit);

  // Starts a step. INVALID_ARGUMENT when the plan is not possible here. Throws CommError. REQUIRES:
  // in_flight() < kMaxInFlight.
  Status Launch(const StepPlan& plan);

  // Steps whose results Collect() has yet to return. Only world rank 0 has any when D is 1.
  int in_flight() const { return static_cast<int>(flights_.size()); }
  // Whether Collect() has something to do: the oldest of them has run, or it takes so long that it
  // should be waited for, up to the deadline of its collectives.
  bool OldestDone();
  // The result of the oldest step, waiting for it. With D > 1 every rank of the world calls it; it is
  // complete on rank 0, whose groups are all D. Throws what went wrong on the device.
  StatusOr<StepResult> Collect();

 private:
  // What becomes of one logit row.
  struct LogitUse {
    int32_t row = 0;        // index in the plan's rows
    int32_t target = -1;    // prompt log-probability of this token, for
    int32_t list = -1;      // this entry of GroupResult::prompt_logprobs; or
    int32_t position = -1;  // position of the token to draw
    bool draws() const { return target < 0; }
  };
  // By logit row; backend memory, on the host while they are filled.
  struct UseArrays {
    const SamplingParams* sampling = nullptr;
    const int32_t* positions = nullptr;
    const int32_t* targets = nullptr;
    const int32_t* slots = nullptr;  // -1: no token is drawn
  };
  // Where a step leaves its results, [rows] by logit row.
  struct Outputs {
    SampledToken* tokens = nullptr;
    TokenLogprob* top = nullptr;     // [rows, kMaxTopLogprobs]
    float* logprobs = nullptr;
  };
  struct Flight {
    StepResult result;               // groups: what is known before the step has run
    std::vector<LogitUse> uses;
    std::vector<int32_t> top_counts; // [uses] of kMaxTopLogprobs
    Outputs host;                    // in host_[index of the flight's slot]
    uint64_t ticket = 0;
    std::chrono::steady_clock::time_point launched;
  };

  std::vector<LogitUse> ListLogitUses(const GroupPlan& plan) const;
  void StageUses(const GroupPlan& plan);
  uint64_t LogitsKey() const;
  void RunLogits();
  void RecordLogits();
  void AwaitAll();
  void StartResults(const StepPlan& plan, const GroupPlan& own);
  GroupResult FinishGroup(Flight* flight) const;
  Status GatherGroups(GroupResult own, StepResult* result);
  void Await(uint64_t ticket);
  static int64_t OutputBytes(int64_t rows);
  static Outputs PlaceOutputs(void* memory, int64_t rows);

  Model* const model_;
  Backend* const backend_;
  const CommGroup comm_;
  const Layout layout_;
  const bool keeps_results_;         // this rank calls Collect()
  const int max_step_tokens_;
  const int logit_rows_;             // of one piece
  const int max_uses_;
  int32_t vocab_limit_;
  bool warm_ = false;                // WarmUp() was called,
  int32_t recorded_limit_ = 0;       // and RecordLogits() with this vocab_limit_; 0: not yet
  SlotTable slots_;
  Staging staging_;
  std::unique_ptr<DeviceBuffer> outputs_;
  std::unique_ptr<HostBuffer> host_outputs_[kMaxInFlight];
  uint64_t launches_ = 0;
  std::deque<Flight> flights_;
  std::chrono::steady_clock::time_point last_finished_;

  // The step being launched.
  Batch batch_;
  std::vector<LogitUse> uses_;
  UseArrays arrays_;
  bool any_top_ = false;
  bool all_greedy_ = true;
};

}  // namespace hadal
