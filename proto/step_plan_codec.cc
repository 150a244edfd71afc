#include "proto/step_plan_codec.h"

#include "hadal/v1/worker.pb.h"

namespace hadal {
namespace {

void ToProto(const SamplingParams& from, v1::SamplingParams* to) {
  to->set_temperature(from.temperature);
  to->set_top_p(from.top_p);
  to->set_top_k(from.top_k);
  to->set_min_p(from.min_p);
  to->set_seed(from.seed);
  to->set_logprobs(from.logprobs);
}

SamplingParams FromProto(const v1::SamplingParams& from) {
  return {.temperature = from.temperature(),
          .top_p = from.top_p(),
          .top_k = from.top_k(),
          .min_p = from.min_p(),
          .seed = from.seed(),
          .logprobs = from.logprobs()};
}

void ToProto(const PlanRow& from, v1::PlanRow* to) {
  to->set_slot(from.slot);
  to->set_start_pos(from.start_pos);
  to->set_num_tokens(from.num_tokens);
  to->set_kind(from.kind == RowKind::kPrefill ? v1::ROW_KIND_PREFILL : v1::ROW_KIND_DECODE);
  to->set_sample(from.sample);
  to->set_prompt_logprobs(from.prompt_logprobs);
  to->set_next_token(from.next_token);
}

void ToProto(const GroupPlan& from, v1::GroupPlan* to) {
  to->mutable_leaves()->Add(from.leaves.begin(), from.leaves.end());
  for (const SlotEnter& enter : from.enters) {
    v1::SlotEnter* out = to->add_enters();
    out->set_slot(enter.slot);
    ToProto(enter.sampling, out->mutable_sampling());
  }
  for (const BlockTableDelta& delta : from.block_tables) {
    v1::BlockTableDelta* out = to->add_block_tables();
    out->set_slot(delta.slot);
    out->set_first_index(delta.first_index);
    out->mutable_blocks()->Add(delta.blocks.begin(), delta.blocks.end());
  }
  for (const PlanRow& row : from.rows) ToProto(row, to->add_rows());
  to->mutable_tokens()->Add(from.tokens.begin(), from.tokens.end());
}

Status FromProto(const v1::PlanRow& from, PlanRow* to) {
  if (from.kind() != v1::ROW_KIND_PREFILL && from.kind() != v1::ROW_KIND_DECODE) {
    return InvalidArgument("plan row of slot {}: unknown kind {}", from.slot(),
                           static_cast<int>(from.kind()));
  }
  if (from.slot() < 0 || from.start_pos() < 0 || from.num_tokens() < 1 || from.next_token() < -1) {
    return InvalidArgument("plan row of slot {}: start_pos {}, num_tokens {} or next_token {} is out of range",
                           from.slot(), from.start_pos(), from.num_tokens(), from.next_token());
  }
  *to = {.slot = from.slot(),
         .start_pos = from.start_pos(),
         .num_tokens = from.num_tokens(),
         .kind = from.kind() == v1::ROW_KIND_PREFILL ? RowKind::kPrefill : RowKind::kDecode,
         .sample = from.sample(),
         .prompt_logprobs = from.prompt_logprobs(),
         .next_token = from.next_token()};
  return OkStatus();
}

Status FromProto(const v1::GroupPlan& from, GroupPlan* to) {
  to->leaves.assign(from.leaves().begin(), from.leaves().end());
  for (const v1::SlotEnter& enter : from.enters()) {
    to->enters.push_back({enter.slot(), FromProto(enter.sampling())});
  }
  for (const v1::BlockTableDelta& delta : from.block_tables()) {
    if (delta.first_index() < 0) return InvalidArgument("block table of slot {}: negative index", delta.slot());
    to->block_tables.push_back(
        {delta.slot(), delta.first_index(), {delta.blocks().begin(), delta.blocks().end()}});
  }
  int64_t tokens = 0;
  for (const v1::PlanRow& row : from.rows()) {
    HADAL_RETURN_IF_ERROR(FromProto(row, &to->rows.emplace_back()));
    tokens += row.num_tokens();
  }
  if (tokens != from.tokens_size()) {
    return InvalidArgument("plan rows hold {} tokens, the token list {}", tokens, from.tokens_size());
  }
  to->tokens.assign(from.tokens().begin(), from.tokens().end());
  return OkStatus();
}

void ToProto(const GroupResult& from, v1::GroupResult* to) {
  for (const SampleResult& sample : from.samples) {
    v1::SampleResult* out = to->add_samples();
    out->set_slot(sample.slot);
    out->set_token(sample.token);
    out->set_logprob(sample.logprob);
    out->set_non_finite(sample.non_finite);
    for (const TokenLogprob& entry : sample.top) {
      v1::TokenScore* score = out->add_top();
      score->set_token(entry.token);
      score->set_logprob(entry.logprob);
    }
  }
  for (const PromptLogprobs& row : from.prompt_logprobs) {
    v1::RowLogprobs* out = to->add_prompt_logprobs();
    out->set_slot(row.slot);
    out->set_start_pos(row.start_pos);
    out->mutable_logprobs()->Add(row.logprobs.begin(), row.logprobs.end());
  }
}

void FromProto(const v1::GroupResult& from, GroupResult* to) {
  for (const v1::SampleResult& sample : from.samples()) {
    SampleResult& out = to->samples.emplace_back();
    out.slot = sample.slot();
    out.token = sample.token();
    out.logprob = sample.logprob();
    out.non_finite = sample.non_finite();
    for (const v1::TokenScore& score : sample.top()) out.top.push_back({score.token(), score.logprob()});
  }
  for (const v1::RowLogprobs& row : from.prompt_logprobs()) {
    to->prompt_logprobs.push_back(
        {row.slot(), row.start_pos(), {row.logprobs().begin(), row.logprobs().end()}});
  }
}

template <typename Message>
Status Parse(std::span<const uint8_t> bytes, const char* what, Message* message) {
  if (!message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return InvalidArgument("{} of {} bytes is not a valid message", what, bytes.size());
  }
  return OkStatus();
}

}  // namespace

std::string EncodeStepPlan(const StepPlan& plan) {
  v1::StepPlan message;
  message.set_epoch(plan.epoch);
  message.set_step(plan.step);
  for (const GroupPlan& group : plan.groups) ToProto(group, message.add_groups());
  return message.SerializeAsString();
}

StatusOr<StepPlan> DecodeStepPlan(std::span<const uint8_t> bytes) {
  v1::StepPlan message;
  HADAL_RETURN_IF_ERROR(Parse(bytes, "step plan", &message));
  StepPlan plan{.epoch = message.epoch(), .step = message.step(), .groups = {}};
  for (const v1::GroupPlan& group : message.groups()) {
    HADAL_RETURN_IF_ERROR(FromProto(group, &plan.groups.emplace_back()));
  }
  return plan;
}

std::string EncodeGroupResult(const GroupResult& result) {
  v1::GroupResult message;
  ToProto(result, &message);
  return message.SerializeAsString();
}

StatusOr<GroupResult> DecodeGroupResult(std::span<const uint8_t> bytes) {
  v1::GroupResult message;
  HADAL_RETURN_IF_ERROR(Parse(bytes, "group result", &message));
  GroupResult result;
  FromProto(message, &result);
  return result;
}

std::string EncodeStepResult(const StepResult& result) {
  v1::StepResult message;
  message.set_epoch(result.epoch);
  message.set_step(result.step);
  message.set_step_us(result.step_us);
  for (const GroupResult& group : result.groups) ToProto(group, message.add_groups());
  return message.SerializeAsString();
}

StatusOr<StepResult> DecodeStepResult(std::span<const uint8_t> bytes) {
  v1::StepResult message;
  HADAL_RETURN_IF_ERROR(Parse(bytes, "step result", &message));
  StepResult result{.epoch = message.epoch(), .step = message.step(), .groups = {}, .step_us = message.step_us()};
  for (const v1::GroupResult& group : message.groups()) FromProto(group, &result.groups.emplace_back());
  return result;
}

}  // namespace hadal
