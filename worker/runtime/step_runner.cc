#include "worker/runtime/step_runner.h"

#include <algorithm>
#include <utility>

#include "proto/step_plan_codec.h"
#include "worker/model/step_inputs.h"

namespace hadal {
namespace {

// Logits of so many rows at a time where a product's weights are read for every few rows anyway.
constexpr int kPieceRows = 32;

constexpr std::chrono::seconds kLongStep(1);

}  // namespace

int StepRunner::LogitRows(const Backend& backend, int max_slots) {
  if (!backend.replays()) return kPieceRows;
  return std::max(kPieceRows, StepInputs::PaddedTokens({.max_step_tokens = max_slots,
                                                        .max_rows = max_slots}));
}

StepRunner::StepRunner(Model* model, Backend* backend, CommGroup comm, const Layout& layout,
                       const GroupCapacity& capacity)
    : model_(model),
      backend_(backend),
      comm_(std::move(comm)),
      layout_(layout),
      keeps_results_(layout.rank == 0 || layout.data_parallel > 1),
      max_step_tokens_(capacity.max_step_tokens),
      logit_rows_(LogitRows(*backend, capacity.max_slots)),
      max_uses_(StepInputs::PaddedTokens({.max_step_tokens = capacity.max_step_tokens,
                                          .max_rows = capacity.max_slots})),
      vocab_limit_(static_cast<int32_t>(model->config().vocab_size)),
      slots_(capacity, vocab_limit_, model->config().max_seq_len),
      staging_(backend, Staging::Bytes<SamplingParams>(max_uses_) +
                            3 * Staging::Bytes<int32_t>(max_uses_)),
      outputs_(backend->Allocate(OutputBytes(max_uses_))) {
  for (auto& buffer : host_outputs_) buffer = backend->AllocateHost(OutputBytes(max_uses_));
}

void StepRunner::Reset(int32_t vocab_limit) {
  backend_->Synchronize();
  flights_.clear();
  vocab_limit_ = std::clamp(vocab_limit, 1, static_cast<int32_t>(model_->config().vocab_size));
  slots_.Clear();
  if (warm_ && recorded_limit_ != vocab_limit_) RecordLogits();
}

int64_t StepRunner::OutputBytes(int64_t rows) {
  return rows * static_cast<int64_t>(sizeof(SampledToken) + sizeof(float) +
                                     kMaxTopLogprobs * sizeof(TokenLogprob));
}

StepRunner::Outputs StepRunner::PlaceOutputs(void* memory, int64_t rows) {
  auto* tokens = static_cast<SampledToken*>(memory);
  auto* logprobs = reinterpret_cast<float*>(tokens + rows);
  return {tokens, reinterpret_cast<TokenLogprob*>(logprobs + rows), logprobs};
}

Status StepRunner::Launch(const StepPlan& plan) {
  HADAL_CHECK(in_flight() < kMaxInFlight);
  if (static_cast<int>(plan.groups.size()) != layout_.data_parallel) {
    return InvalidArgument("plan has {} groups, the layout {}", plan.groups.size(),
                           layout_.data_parallel);
  }
  const GroupPlan& own = plan.groups[layout_.dp_rank()];
  HADAL_RETURN_IF_ERROR(slots_.Apply(own, &batch_));
  batch_.step = BoundsOf(plan);
  if (batch_.step.tokens > max_step_tokens_ ||
      batch_.step.context > model_->config().max_seq_len) {
    return InvalidArgument("plan has a group with {} tokens and a context of {}, groups take {} and {}",
                           batch_.step.tokens, batch_.step.context, max_step_tokens_,
                           model_->config().max_seq_len);
  }
  uses_ = ListLogitUses(own);
  HADAL_CHECK(uses_.size() == batch_.logit_tokens.size());
  const auto launched = std::chrono::steady_clock::now();
  model_->Prepare(batch_);
  StageUses(own);
  // Apart, since ranks must record what they exchange together, and groups sample in their own ways.
  backend_->Replay(model_->replay_key(), [this] { model_->Forward(); });
  backend_->Replay(LogitsKey(), [this] { RunLogits(); });
  if (keeps_results_) {
    StartResults(plan, own);
    flights_.back().launched = launched;
  }
  return OkStatus();
}

// In the order in which SlotTable::Apply lists logit_tokens.
std::vector<StepRunner::LogitUse> StepRunner::ListLogitUses(const GroupPlan& plan) const {
  std::vector<LogitUse> uses;
  const int32_t* tokens = plan.tokens.data();
  int32_t list = 0;
  for (int32_t r = 0; r < static_cast<int32_t>(plan.rows.size()); ++r) {
    const PlanRow& row = plan.rows[r];
    if (row.prompt_logprobs) {
      for (int32_t i = 1; i < row.num_tokens; ++i) {
        uses.push_back({.row = r, .target = tokens[i], .list = list});
      }
      if (row.next_token >= 0) uses.push_back({.row = r, .target = row.next_token, .list = list});
      ++list;
    }
    if (row.sample) uses.push_back({.row = r, .position = row.start_pos + row.num_tokens});
    tokens += row.num_tokens;
  }
  return uses;
}

// Rows that are only padding are drawn greedily, for nobody.
void StepRunner::StageUses(const GroupPlan& plan) {
  const int rows = model_->logit_rows();
  staging_.Clear();
  any_top_ = false;
  all_greedy_ = true;
  SamplingParams* sampling = staging_.Place(rows, &arrays_.sampling);
  for (int i = 0; i < rows; ++i) {
    const bool drawn = i < static_cast<int>(uses_.size()) && uses_[i].draws();
    sampling[i] = drawn ? slots_.sampling(plan.rows[uses_[i].row].slot) : SamplingParams{};
    any_top_ = any_top_ || sampling[i].logprobs > 0;
    all_greedy_ = all_greedy_ && sampling[i].temperature == 0;
  }
  const auto place = [&](const int32_t** device, int32_t none, auto value) {
    int32_t* to = staging_.Place(rows, device);
    std::fill_n(to, rows, none);
    for (size_t i = 0; i < uses_.size(); ++i) to[i] = value(uses_[i]);
  };
  place(&arrays_.positions, 0, [](const LogitUse& use) { return use.position; });
  place(&arrays_.targets, 0, [](const LogitUse& use) { return std::max(use.target, 0); });
  place(&arrays_.slots, -1, [&](const LogitUse& use) {
    return use.draws() ? plan.rows[use.row].slot : -1;
  });
  staging_.Upload();
}

// Everything that RunLogits() depends on. No key of the model, whose high bits are clear.
uint64_t StepRunner::LogitsKey() const {
  if (model_->replay_key() == 0) return 0;
  return static_cast<uint64_t>(model_->logit_rows()) | static_cast<uint64_t>(vocab_limit_) << 16 |
         uint64_t{1} << 61 | uint64_t{any_top_} << 62 | uint64_t{all_greedy_} << 63;
}

// Hands each run of rows with the same use to its op. One rank of a group draws and tells the others:
// hosts of different kinds could round differently.
void StepRunner::RunLogits() {
  const int64_t vocab = model_->config().vocab_size;
  const int total = model_->logit_rows();
  const Outputs out = PlaceOutputs(outputs_->data, total);
  const auto draws = [&](int i) { return i >= static_cast<int>(uses_.size()) || uses_[i].draws(); };
  for (int first = 0; first < total; first += logit_rows_) {
    const int end = std::min(first + logit_rows_, total);
    const float* logits = model_->Logits(first, end - first);
    if (layout_.tp_rank() != 0) continue;
    for (int begin = first, next = first; begin < end; begin = next) {
      while (next < end && draws(next) == draws(begin)) ++next;
      const float* rows = logits + (begin - first) * vocab;
      if (draws(begin)) {
        backend_->Sample({.logits = rows, .rows = next - begin, .vocab = vocab,
                          .vocab_limit = vocab_limit_, .sampling = arrays_.sampling + begin,
                          .positions = arrays_.positions + begin, .out = out.tokens + begin,
                          .top = out.top + int64_t{begin} * kMaxTopLogprobs, .any_top = any_top_,
                          .all_greedy = all_greedy_});
      } else {
        backend_->TokenLogprobs({.logits = rows, .targets = arrays_.targets + begin,
                                 .rows = next - begin, .vocab = vocab, .vocab_limit = vocab,
                                 .out = out.logprobs + begin});
      }
    }
  }
  if (total == 0) return;
  if (layout_.tensor_parallel > 1) {
    comm_.act_tensor->Broadcast(out.tokens, total * int64_t{sizeof(SampledToken)}, 0);
  }
  backend_->StoreTokens({.tokens = out.tokens, .slots = arrays_.slots,
                         .last_tokens = model_->last_tokens(), .rows = total});
}

void StepRunner::StartResults(const StepPlan& plan, const GroupPlan& own) {
  Flight flight;
  flight.result = {.epoch = plan.epoch, .step = plan.step, .groups = {GroupResult{}}};
  // Every such row has its list, also when none of its tokens is followed by another.
  for (const PlanRow& row : own.rows) {
    if (!row.prompt_logprobs) continue;
    flight.result.groups[0].prompt_logprobs.push_back({row.slot, row.start_pos, {}});
  }
  bool any_logprob = false;
  for (const LogitUse& use : uses_) {
    const int32_t slot = own.rows[use.row].slot;
    flight.top_counts.push_back(
        std::clamp(slots_.sampling(slot).logprobs, 0, std::min(kMaxTopLogprobs, vocab_limit_)));
    if (use.draws()) flight.result.groups[0].samples.push_back({.slot = slot});
    any_logprob = any_logprob || !use.draws();
  }
  HostBuffer* host = host_outputs_[launches_++ % kMaxInFlight].get();
  const int64_t rows = model_->logit_rows();
  flight.host = PlaceOutputs(host->data, rows);
  const Outputs device = PlaceOutputs(outputs_->data, rows);
  const auto fetch = [&](auto* to, const auto* from, int64_t count) {
    flight.ticket = backend_->StartCopyToHost(to, from, count * int64_t{sizeof(*to)});
  };
  fetch(flight.host.tokens, device.tokens, rows);
  if (any_top_) fetch(flight.host.top, device.top, rows * kMaxTopLogprobs);
  if (any_logprob) fetch(flight.host.logprobs, device.logprobs, rows);
  flight.uses = uses_;
  flights_.push_back(std::move(flight));
}

bool StepRunner::OldestDone() {
  const Flight& oldest = flights_.front();
  return backend_->Done(oldest.ticket) ||
         std::chrono::steady_clock::now() - std::max(oldest.launched, last_finished_) > kLongStep;
}

void StepRunner::Await(uint64_t ticket) {
  if (comm_.watch != nullptr) {
    comm_.watch->Await([&] { return backend_->Done(ticket); });
  } else {
    backend_->Await(ticket);
  }
}

GroupResult StepRunner::FinishGroup(Flight* flight) const {
  GroupResult group = std::move(flight->result.groups[0]);
  size_t sample = 0;
  for (size_t i = 0; i < flight->uses.size(); ++i) {
    const LogitUse& use = flight->uses[i];
    if (!use.draws()) {
      group.prompt_logprobs[use.list].logprobs.push_back(flight->host.logprobs[i]);
      continue;
    }
    const SampledToken& drawn = flight->host.tokens[i];
    SampleResult& result = group.samples[sample++];
    result.token = drawn.token;
    result.logprob = drawn.logprob;
    result.non_finite = drawn.non_finite != 0;
    if (result.non_finite) continue;
    const TokenLogprob* top = flight->host.top + i * kMaxTopLogprobs;
    result.top.assign(top, top + flight->top_counts[i]);
  }
  return group;
}

StatusOr<StepResult> StepRunner::Collect() {
  HADAL_CHECK(in_flight() > 0);
  Flight flight = std::move(flights_.front());
  flights_.pop_front();
  Await(flight.ticket);
  GroupResult own = layout_.tp_rank() == 0 ? FinishGroup(&flight) : GroupResult{};
  StepResult result = std::move(flight.result);
  result.groups.clear();
  HADAL_RETURN_IF_ERROR(GatherGroups(std::move(own), &result));
  // A step that was launched while another ran began when that one ended.
  const auto now = std::chrono::steady_clock::now();
  result.step_us = std::chrono::duration_cast<std::chrono::microseconds>(
                       now - std::max(flight.launched, last_finished_))
                       .count();
  last_finished_ = now;
  return result;
}

Status StepRunner::GatherGroups(GroupResult own, StepResult* result) {
  if (layout_.data_parallel == 1) {
    result->groups.push_back(std::move(own));
    return OkStatus();
  }
  const std::string bytes = layout_.tp_rank() == 0 ? EncodeGroupResult(own) : "";
  const auto own_size = static_cast<int64_t>(bytes.size());
  std::vector<int64_t> sizes(layout_.world());
  comm_.world->AllGather(&own_size, sizes.data(), sizeof(own_size));
  int64_t total = 0;
  for (int64_t size : sizes) total += size;
  std::vector<uint8_t> all(total);
  comm_.world->AllGatherV(bytes.data(), all.data(), sizes);
  if (layout_.rank != 0) return OkStatus();
  int64_t offset = 0;
  for (int d = 0; d < layout_.data_parallel; ++d) {
    const int64_t size = sizes[d * layout_.tensor_parallel];
    HADAL_ASSIGN_OR_RETURN(GroupResult group, DecodeGroupResult({all.data() + offset,
                                                                 static_cast<size_t>(size)}));
    result->groups.push_back(std::move(group));
    offset += size;
  }
  return OkStatus();
}

}  // namespace hadal
