#include "worker/bench/rank_bench.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "common/converted_checkpoint.h"
#include "common/dummy_checkpoint.h"
#include "worker/backends.h"
#include "worker/model/fixed_exchange.h"
#include "worker/model/step_inputs.h"
#include "worker/runtime/memory_budget.h"

namespace hadal {
namespace {

int Largest(const std::vector<int>& values) { return *std::max_element(values.begin(), values.end()); }

}  // namespace

// For the largest step that is asked for.
ModelOptions RankBench::Sizes() const {
  const int sequences = Largest(options_.batches);
  const int prompts = Largest(options_.prompt_batches);
  const int rows = std::max(sequences, prompts);
  return {.kv_blocks = rows * blocks_per_sequence_,
          .max_step_tokens = std::max({prompts * Largest(options_.prompts), options_.context, sequences}),
          .max_rows = rows,
          .max_step_logits = StepInputs::PaddedTokens({.max_step_tokens = rows, .max_rows = rows}),
          .replays = backend_->replays(),
          // On every device as on those where it pays: the other exchange needs the others' choices.
          .fixed_exchange = MostRanksMeetAToken(config_, layout_)};
}

Status RankBench::PlanMemoryOf(const ModelOptions& model_options) {
  const MemoryPlan plan = PlanMemory(config_, layout_, *backend_, model_options);
  const int64_t available = backend_->AvailableBytes(1);
  memory_ = DescribeMemoryPlan(plan, model_options.kv_blocks, available);
  const int64_t kv = model_options.kv_blocks * plan.kv_per_block;
  if (plan.weights + plan.workspace + plan.recorded + kv <= available) return OkStatus();
  return FailedPrecondition("{}: this does not fit; use a --simulate-layout of more ranks, or fewer and "
                            "shorter --batch, --context and --prompt", memory_);
}

Status RankBench::Open() {
  HADAL_ASSIGN_OR_RETURN(config_, LoadModelConfig(options_.model_dir));
  if (!options_.simulated_layout.empty()) {
    HADAL_ASSIGN_OR_RETURN(layout_, ParseSimulatedLayout(options_.simulated_layout,
                                                         options_.simulated_rank, config_));
  }
  HADAL_ASSIGN_OR_RETURN(const DType activations, ActivationsOf("auto", config_));
  HADAL_ASSIGN_OR_RETURN(backend_, MakeBackend({.name = options_.device, .isa = options_.isa,
                                                .threads = options_.threads,
                                                .scale_block = config_.scale_block,
                                                .activations = activations}));
  if (options_.ops) {
    auto timed = std::make_unique<TimedBackend>(std::move(backend_));
    timed_ = timed.get();
    backend_ = std::move(timed);
  }
  return OkStatus();
}

// There are no rotations for positions beyond the model's last.
Status RankBench::CheckPositions(int decoded) const {
  const int64_t most = config_.max_seq_len;
  const int prompt = Largest(options_.prompts);
  if (prompt > most) {
    return InvalidArgument("--prompt {}: the model has {} positions (max_position_embeddings)", prompt, most);
  }
  if (options_.context + decoded > most) {
    return InvalidArgument("--context {}, --steps and --repeats decode up to position {}, but the model has "
                           "{} (max_position_embeddings)", options_.context, options_.context + decoded, most);
  }
  return OkStatus();
}

Status RankBench::Load() {
  if (backend_ == nullptr) HADAL_RETURN_IF_ERROR(Open());
  const int decoded = options_.decode_steps * (options_.repeats + 1);
  HADAL_RETURN_IF_ERROR(CheckPositions(decoded));
  blocks_per_sequence_ = std::max(Largest(options_.prompts), options_.context + decoded) / kBlockSize + 1;
  const ModelOptions model_options = Sizes();
  fixed_exchange_ = model_options.fixed_exchange;
  max_step_tokens_ = model_options.max_step_tokens;
  HADAL_RETURN_IF_ERROR(PlanMemoryOf(model_options));
  HADAL_ASSIGN_OR_RETURN(auto checkpoint,
                         options_.dummy ? MakeDummyCheckpoint(config_, /*seed=*/0)
                                        : OpenCheckpoint(options_.model_dir, config_, layout_));
  CommGroup comm = HostCommGroup(MakeSelfCommunicator(), MakeSelfCommunicator());
  if (layout_.world() > 1) {
    others_ = std::make_unique<SimulatedRanks>(config_, layout_, model_options, backend_.get());
    comm = others_->comm();
  }
  HADAL_ASSIGN_OR_RETURN(model_, Model::Load(config_, layout_, *checkpoint, backend_.get(), comm,
                                             model_options, nullptr));
  return OkStatus();
}

std::vector<Measurement> RankBench::Run() {
  std::vector<Measurement> results;
  for (int prompt : options_.prompts) {
    for (int batch : options_.prompt_batches) results.push_back(Prefill(prompt, batch));
  }
  for (int batch : options_.batches) results.push_back(Decode(batch));
  return results;
}

std::vector<float> RankBench::LastLogits() {
  std::vector<float> logits(config_.vocab_size);
  backend_->CopyToHost(logits.data(), logits_, config_.vocab_size * int64_t{sizeof(float)});
  return logits;
}

// Adds a row to a batch that is then a step of every D group.
void RankBench::Append(int sequence, int start, int count, RowKind kind, Batch* batch) {
  const auto first = static_cast<int32_t>(batch->tokens.size());
  std::uniform_int_distribution<int32_t> token(0, static_cast<int32_t>(config_.vocab_size) - 1);
  for (int i = 0; i < count; ++i) {
    batch->tokens.push_back(token(rng_));
    batch->positions.push_back(start + i);
  }
  batch->rows.push_back({.first_token = first, .num_tokens = count, .start_pos = start, .kind = kind,
                         .blocks = tables_.data() + sequence * blocks_per_sequence_});
  batch->logit_tokens.push_back(first + count - 1);
  batch->step = {.tokens = first + count,
                 .context = std::max<int64_t>(batch->step.context, start + count),
                 .decodes_only = kind == RowKind::kDecode};
}

StepTime RankBench::Step(const Batch& batch) {
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  model_->Prepare(batch);
  if (others_ != nullptr) {
    const auto tokens = static_cast<int>(batch.tokens.size());
    others_->Choose(tokens, model_->replay_key() != 0 ? model_->logit_rows() : tokens);
  }
  backend_->Replay(model_->replay_key(), [&] {
    model_->Forward();
    logits_ = model_->Logits(0, model_->logit_rows());
  });
  const double host = seconds();
  backend_->Synchronize();
  return {seconds(), host};
}

// Of one step, when `steps` ran since the last call.
std::vector<OpTime> RankBench::TakeOps(int steps) {
  if (timed_ == nullptr) return {};
  std::vector<OpTime> ops = timed_->TakeTimes();
  for (OpTime& op : ops) {
    op.calls /= steps;
    op.seconds /= steps;
  }
  return ops;
}

Measurement RankBench::Prefill(int tokens, int sequences) {
  tables_.resize(sequences * blocks_per_sequence_);
  std::iota(tables_.begin(), tables_.end(), 0);
  Batch batch;
  for (int s = 0; s < sequences; ++s) Append(s, 0, tokens, RowKind::kPrefill, &batch);
  StepTime best;
  for (int i = 0; i <= options_.repeats; ++i) {
    StepTime time = Step(batch);
    time.ops = TakeOps(1);
    best = std::min(best, time);
  }
  StepShape shape;
  shape.prefill.assign(sequences, {.start_pos = 0, .num_tokens = tokens});
  return {"prefill", sequences, sequences * tokens, best, Count(std::move(shape))};
}

// As many sequences per step as it holds.
void RankBench::FillContexts(int sequences) {
  const int together = max_step_tokens_ / options_.context;
  for (int first = 0; first < sequences; first += together) {
    Batch batch;
    for (int s = first; s < std::min(first + together, sequences); ++s) {
      Append(s, 0, options_.context, RowKind::kPrefill, &batch);
    }
    Step(batch);
  }
}

// A decode step's time is the mean over decode_steps; the best mean counts.
Measurement RankBench::Decode(int sequences) {
  tables_.resize(sequences * blocks_per_sequence_);
  std::iota(tables_.begin(), tables_.end(), 0);
  FillContexts(sequences);
  TakeOps(1);
  StepTime best;
  int position = options_.context;
  for (int i = 0; i <= options_.repeats; ++i) {
    StepTime sum{.seconds = 0};
    for (int step = 0; step < options_.decode_steps; ++step, ++position) {
      Batch batch;
      for (int s = 0; s < sequences; ++s) Append(s, position, 1, RowKind::kDecode, &batch);
      const StepTime time = Step(batch);
      sum.seconds += time.seconds / options_.decode_steps;
      sum.host_seconds += time.host_seconds / options_.decode_steps;
    }
    sum.ops = TakeOps(options_.decode_steps);
    best = std::min(best, sum);
  }
  StepShape shape;
  shape.decode_contexts.assign(sequences, position);
  return {"decode", sequences, sequences, best, Count(std::move(shape))};
}

StepCost RankBench::Count(StepShape shape) const {
  shape.fixed_exchange = fixed_exchange_;
  return CountStep(config_, layout_, *backend_, shape);
}

}  // namespace hadal
