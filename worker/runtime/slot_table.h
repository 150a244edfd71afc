#pragma once

#include <cstdint>
#include <vector>

#include "common/status.h"
#include "common/step_plan.h"
#include "worker/model/model.h"

namespace hadal {

// For Batch::step.
StepBounds BoundsOf(const StepPlan& plan);

// The sequences of one D group as its ranks know them: which slots are taken, how each samples, and
// where its KV blocks are. Identical on all ranks of the group. One thread.
class SlotTable {
 public:
  explicit SlotTable(const GroupCapacity& capacity, int32_t vocab_size, int64_t max_seq_len);

  // Applies leaves, enters and block tables, and turns the rows into a batch whose pointers stay
  // valid until the next call. INVALID_ARGUMENT when the plan contradicts the table (an unknown slot,
  // a block out of range, a position without a block): the group must then be ended.
  Status Apply(const GroupPlan& plan, Batch* batch);

  const SamplingParams& sampling(int32_t slot) const { return slots_[slot].sampling; }

  // Forgets every sequence.
  void Clear();

 private:
  struct Slot {
    bool taken = false;
    SamplingParams sampling;
    std::vector<int32_t> blocks;
    uint64_t sequence = 0;
    bool sampled = false;  // so that kSampledToken stands for something
  };

  Status CheckSlot(int32_t slot, bool taken) const;
  Status ApplyDelta(const BlockTableDelta& delta);
  Status AppendRow(const PlanRow& row, const int32_t* tokens, Batch* batch);

  const GroupCapacity capacity_;
  const int32_t vocab_size_;
  const int64_t max_seq_len_;
  std::vector<Slot> slots_;  // [max_slots]
  uint64_t sequences_ = 0;   // that have entered, in all epochs
};

}  // namespace hadal
