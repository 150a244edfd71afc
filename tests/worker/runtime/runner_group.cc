#include "tests/worker/runtime/runner_group.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <stdexcept>

namespace hadal::testing {

void PoisonedModel::Forward(const Batch& batch) {
  logit_ids_.clear();
  for (int32_t t : batch.logit_tokens) logit_ids_.push_back(batch.tokens[t]);
  model_->Forward(batch);
}

void PoisonedModel::Logits(int first, int count, float* out) {
  model_->Logits(first, count, out);
  const int64_t vocab = config().vocab_size;
  for (int i = 0; i < count; ++i) {
    if (!poisoned_.contains(logit_ids_[first + i])) continue;
    std::fill_n(out + i * vocab, vocab, std::numeric_limits<float>::quiet_NaN());
  }
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
  std::vector<std::optional<StatusOr<StepResult>>> results(runners_.size());
  RunRanks(world(), [&](int rank) { results[rank] = runners_[rank]->Run(plan); });
  for (const auto& result : results) {
    if (result->ok() != results[0]->ok()) throw std::runtime_error("ranks disagree about a plan");
  }
  return std::move(*results[0]);
}

}  // namespace hadal::testing
