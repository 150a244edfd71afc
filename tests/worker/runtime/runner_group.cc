#include "tests/worker/runtime/runner_group.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <stdexcept>

namespace hadal::testing {

void PoisonedModel::Prepare(const Batch& batch) {
  logit_ids_.clear();
  for (int32_t t : batch.logit_tokens) logit_ids_.push_back(batch.tokens[t]);
  model_->Prepare(batch);
}

const float* PoisonedModel::Logits(int first, int count) {
  const int64_t vocab = config().vocab_size;
  const float* logits = model_->Logits(first, count);
  logits_.assign(logits, logits + count * vocab);
  for (int i = 0; i < count; ++i) {
    if (!poisoned_.contains(logit_ids_[first + i])) continue;
    std::fill_n(logits_.begin() + i * vocab, vocab, std::numeric_limits<float>::quiet_NaN());
  }
  return logits_.data();
}

RunnerGroup::RunnerGroup(ModelGroup* models, const GroupCapacity& capacity) {
  for (int rank = 0; rank < models->world(); ++rank) {
    models_.push_back(std::make_unique<PoisonedModel>(models->model(rank)));
    runners_.push_back(std::make_unique<StepRunner>(models_[rank].get(), models->backend(rank),
                                                    models->comm(rank), models->layout(rank),
                                                    capacity));
  }
}

void RunnerGroup::Reset(int32_t vocab_limit) {
  for (auto& runner : runners_) runner->Reset(vocab_limit);
}

void RunnerGroup::Poison(int32_t token) {
  for (auto& model : models_) model->Poison(token);
}

StatusOr<StepResult> RunnerGroup::Run(const StepPlan& plan) {
  std::vector<Status> launched(runners_.size());
  RunRanks(world(), [&](int rank) { launched[rank] = runners_[rank]->Launch(plan); });
  for (const Status& status : launched) {
    if (status.ok() != launched[0].ok()) throw std::runtime_error("ranks disagree about a plan");
  }
  if (!launched[0].ok()) return launched[0];
  std::vector<std::optional<StatusOr<StepResult>>> results(runners_.size());
  RunRanks(world(), [&](int rank) {
    if (runners_[rank]->in_flight() > 0) results[rank] = runners_[rank]->Collect();
  });
  return std::move(*results[0]);
}

}  // namespace hadal::testing
