#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hadal {

// Tokens per KV cache block, the same on server and workers.
inline constexpr int kBlockSize = 64;

// The most likely tokens that a sampled one can be reported with.
inline constexpr int kMaxTopLogprobs = 20;

// How one sequence samples. temperature 0 is greedy. Filters apply in this order: temperature,
// top_k, top_p, min_p. Ids of `vocab_limit` and above have no token and are never drawn.
struct SamplingParams {
  float temperature = 0;
  float top_p = 1;        // 1: off
  int32_t top_k = 0;      // 0: off
  float min_p = 0;        // 0: off
  uint64_t seed = 0;      // with the position of the sampled token it fixes the draw
  int32_t logprobs = -1;  // -1: none; 0: of the chosen token; n: and of the n most likely

  bool operator==(const SamplingParams&) const = default;
};

// A sequence takes a slot of its D group. Its block table is empty, its last token unset.
struct SlotEnter {
  int32_t slot = 0;
  SamplingParams sampling;
  bool operator==(const SlotEnter&) const = default;
};

// Appends to, or overwrites from `first_index` on, the block table of a slot.
struct BlockTableDelta {
  int32_t slot = 0;
  int32_t first_index = 0;
  std::vector<int32_t> blocks;
  bool operator==(const BlockTableDelta&) const = default;
};

// Consecutive tokens of one sequence computed in this step.
// kPrefill: the tokens belong to the prompt (up-projected attention). kDecode: they were generated,
// also when they are recomputed after a preemption (absorbed attention). The kind depends on the
// token alone, never on the batch, which is what makes output independent of scheduling.
enum class RowKind : uint8_t { kPrefill = 0, kDecode = 1 };

struct PlanRow {
  int32_t slot = 0;
  int32_t start_pos = 0;    // position of the first token in its sequence
  int32_t num_tokens = 0;   // >= 1
  RowKind kind = RowKind::kPrefill;
  bool sample = false;            // draw a token after the last one of this row
  bool prompt_logprobs = false;   // log-probability of each next token, see next_token
  int32_t next_token = -1;        // with prompt_logprobs: the prompt token after this row, -1: none
  bool operator==(const PlanRow&) const = default;
};

// The token drawn for this row's slot in the previous step that sampled it.
inline constexpr int32_t kSampledToken = -1;

// What one D group does in a step. Applied in this order: leaves, enters, block tables, rows.
struct GroupPlan {
  std::vector<int32_t> leaves;  // slots
  std::vector<SlotEnter> enters;
  std::vector<BlockTableDelta> block_tables;
  std::vector<PlanRow> rows;    // kDecode rows first
  std::vector<int32_t> tokens;  // the rows' tokens, concatenated; kSampledToken only in kDecode rows
  bool operator==(const GroupPlan&) const = default;
};

// One step of one worker group. Plans of one epoch are numbered from 1 without gaps; at most two are
// in flight.
struct StepPlan {
  uint64_t epoch = 0;
  uint64_t step = 0;
  std::vector<GroupPlan> groups;  // [data_parallel]
  bool operator==(const StepPlan&) const = default;
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;  // natural log, of the model's distribution before temperature and filters
  bool operator==(const TokenLogprob&) const = default;
};

// One sampled row.
struct SampleResult {
  int32_t slot = 0;
  int32_t token = 0;
  float logprob = 0;                // set when SamplingParams::logprobs >= 0
  std::vector<TokenLogprob> top;    // most likely first
  bool non_finite = false;          // logits had NaN or Inf: the token is meaningless
  bool operator==(const SampleResult&) const = default;
};

// Of one row with prompt_logprobs: entry i is the log-probability of the token at start_pos + 1 + i.
struct PromptLogprobs {
  int32_t slot = 0;
  int32_t start_pos = 0;
  std::vector<float> logprobs;
  bool operator==(const PromptLogprobs&) const = default;
};

struct GroupResult {
  std::vector<SampleResult> samples;  // in the order of the plan's rows that sample
  std::vector<PromptLogprobs> prompt_logprobs;
  bool operator==(const GroupResult&) const = default;
};

struct StepResult {
  uint64_t epoch = 0;
  uint64_t step = 0;
  std::vector<GroupResult> groups;  // [data_parallel]
  int64_t step_us = 0;              // time of the step on rank 0, microseconds
  bool operator==(const StepResult&) const = default;
};

// What a worker group brings when it joins.
struct GroupCapacity {
  std::string fingerprint;          // ModelFingerprint()
  int32_t tensor_parallel = 1;
  int32_t data_parallel = 1;
  int32_t kv_blocks = 0;            // per D group, of kBlockSize tokens
  int32_t max_slots = 0;            // per D group
  int32_t max_step_tokens = 0;      // per D group and step
  bool operator==(const GroupCapacity&) const = default;
};

}  // namespace hadal
