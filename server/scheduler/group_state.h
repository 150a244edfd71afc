#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "common/step_plan.h"
#include "server/kv/kv_cache.h"
#include "server/scheduler/sequence.h"

namespace hadal {

// What the scheduler knows of one D group of the joined worker group.
struct GroupState {
  GroupState(int32_t kv_blocks, int32_t num_slots);

  KvCache cache;
  std::vector<int32_t> free_slots;        // also those in `leaves`: leaves come before enters
  std::vector<int32_t> leaves;            // for the next plan
  std::map<uint64_t, Sequence*> running;  // by order of arrival

  // Blocks to keep for the running sequences that will need another one, so that an admission
  // does not cause a preemption a few steps later.
  int32_t Headroom() const;

  // Drops the blocks and slot of a running sequence; the next plan lets the slot leave.
  void Remove(Sequence* sequence);
};

// The plan of one D group in the making. Adding a row advances its sequence.
class GroupDraft {
 public:
  explicit GroupDraft(int32_t step_tokens) : tokens_left_(step_tokens) {}

  void Enter(const Sequence& sequence);
  // Sends the block table of `sequence` from `first_index` on.
  void SendBlocks(const Sequence& sequence, int32_t first_index);
  // The next `num_tokens` tokens of the sequence.
  void AddRow(Sequence* sequence, int32_t num_tokens);

  int32_t tokens_left() const { return tokens_left_; }
  // Tokens that are prompt or recomputed, against the chunk limit.
  int32_t prompt_tokens() const { return prompt_tokens_; }
  bool has_rows() const { return !decode_.rows.empty() || !prefill_.rows.empty(); }

  // `owners`: of each row of the plan, the `order` of its sequence. The draft is used up.
  GroupPlan Finish(std::vector<int32_t> leaves, std::vector<uint64_t>* owners);

 private:
  struct Rows {
    std::vector<PlanRow> rows;
    std::vector<int32_t> tokens;
    std::vector<uint64_t> owners;
  };
  GroupPlan plan_;
  Rows decode_;
  Rows prefill_;
  int32_t tokens_left_;
  int32_t prompt_tokens_ = 0;
};

}  // namespace hadal
