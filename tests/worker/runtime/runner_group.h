#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "tests/worker/model/model_group.h"
#include "worker/runtime/step_runner.h"

namespace hadal::testing {

// A model whose logits behind some tokens are NaN, as after a fault of the machine.
class PoisonedModel final : public Model {
 public:
  // `model` outlives this.
  explicit PoisonedModel(Model* model) : model_(model) {}

  void Poison(int32_t token) { poisoned_.insert(token); }

  void Prepare(const Batch& batch) override;
  uint64_t replay_key() const override { return model_->replay_key(); }
  std::vector<StepBounds> replay_shapes() const override { return model_->replay_shapes(); }
  int logit_rows() const override { return model_->logit_rows(); }
  void Forward() override { model_->Forward(); }
  const float* Logits(int first, int count) override;
  int32_t* last_tokens() override { return model_->last_tokens(); }
  const ModelConfig& config() const override { return model_->config(); }

 private:
  Model* const model_;
  std::set<int32_t> poisoned_;
  std::vector<int32_t> logit_ids_;  // the ids whose logits are wanted
  std::vector<float> logits_;
};

// A StepRunner on every rank of a layout, each step on threads of its own.
class RunnerGroup {
 public:
  // `models` outlives this. `capacity` names the layout of `models`.
  RunnerGroup(ModelGroup* models, const GroupCapacity& capacity);

  void Reset(int32_t vocab_limit);
  // What rank 0 returns. Throws when some ranks accept the plan and others do not.
  StatusOr<StepResult> Run(const StepPlan& plan);
  // From now on the logits behind this token are NaN.
  void Poison(int32_t token);

  StepRunner* runner(int rank) { return runners_[rank].get(); }
  int world() const { return static_cast<int>(runners_.size()); }

 private:
  std::vector<std::unique_ptr<PoisonedModel>> models_;  // [ranks]
  std::vector<std::unique_ptr<StepRunner>> runners_;    // [ranks]
};

}  // namespace hadal::testing
