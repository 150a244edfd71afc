#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "common/step_plan.h"

namespace hadal::testing {

// A toy model: what follows a token sequence is a hash of all its tokens, of the attention form
// (RowKind) that each of them was computed with, and of the sampling parameters. Any mistake in
// positions, blocks, kinds or parameters changes the text that follows.
inline constexpr int32_t kToyVocabulary = 97;

uint64_t ExtendHash(uint64_t prefix_hash, int32_t token, RowKind kind);
int32_t ToyNextToken(uint64_t prefix_hash, const SamplingParams& sampling);
float ToyLogprob(uint64_t prefix_hash, int32_t next_token);

// What a request must generate: max_tokens tokens, none of them compared with stop tokens.
std::vector<int32_t> ToyGenerate(const std::vector<int32_t>& prompt, const SamplingParams& sampling,
                                 int32_t max_tokens);
// Of prompt positions 1 to the end.
std::vector<float> ToyPromptLogprobs(const std::vector<int32_t>& prompt);

// Executes plans as workers would and refuses (std::logic_error) whatever step_plan.h does not
// allow. Each KV cell remembers its position and the hash of the prefix that it was computed from,
// as real KV depends on all tokens before it, so a row that reads a cell of another sequence, or
// reads it too early or too late, is found out.
class PlanExecutor {
 public:
  PlanExecutor(const GroupCapacity& capacity, uint64_t epoch);

  StepResult Execute(const StepPlan& plan);

  // When set, a sequence that sampled must have a row in the next plan, or leave, unless this says
  // that it has no token to draw after `position`.
  std::function<bool(const SamplingParams&, int32_t position)> exhausted;
  // When set: the sample of this sequence at this position comes out as NaN.
  std::function<bool(const SamplingParams&, int32_t position)> non_finite;

  // Slots that were entered since the start, rows with more than one token among the decode rows.
  int64_t enters = 0;
  int64_t recomputed_rows = 0;

 private:
  struct Cell {
    int32_t position = -1;
    int32_t token = -1;
    RowKind kind = RowKind::kPrefill;
    uint64_t hash = 0;  // of the prefix up to and with this token
  };
  struct Slot {
    SamplingParams sampling;
    std::vector<int32_t> table;
    int32_t next_position = -1;  // -1: no row yet
    int32_t last_sample = -1;
    bool sampled_last_step = false;
  };
  struct Group {
    std::map<int32_t, Slot> slots;
    std::vector<std::vector<Cell>> blocks;  // [kv_blocks][kBlockSize]
  };

  void ApplyTables(const GroupPlan& plan, Group* group);
  void CheckRows(const GroupPlan& plan, const Group& group) const;
  uint64_t PrefixHash(const Group& group, const Slot& slot, int32_t end) const;
  void ExecuteRow(const PlanRow& row, const int32_t* tokens, Group* group, GroupResult* result);
  void Write(Group* group, int32_t slot_id, int32_t position, const Cell& cell);

  const GroupCapacity capacity_;
  const uint64_t epoch_;
  uint64_t last_step_ = 0;
  std::vector<Group> groups_;
};

}  // namespace hadal::testing
