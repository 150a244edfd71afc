#pragma once

#include <memory>
#include <vector>

#include "worker/model/expanded_prompt.h"
#include "worker/model/expert_exchange.h"
#include "worker/model/fixed_exchange.h"
#include "worker/model/model.h"
#include "worker/model/step_inputs.h"
#include "worker/model/weights.h"
#include "worker/model/workspace.h"

namespace hadal {

// The forward pass of one rank. Residual stream, norms and the router are whole on every rank of a
// D group; heads, MLPs and the vocabulary are split, so each block ends with a sum over the group.
class Transformer final : public Model {
 public:
  Transformer(const ModelConfig& config, const Layout& layout, Backend* backend, CommGroup comm,
              const ModelOptions& options, ModelWeights weights);

  void Prepare(const Batch& batch) override;
  uint64_t replay_key() const override { return inputs_.replay_key(); }
  std::vector<StepBounds> replay_shapes() const override {
    return StepInputs::ReplayShapes(layout_, options_, config_.max_seq_len);
  }
  int logit_rows() const override { return inputs_.logits(); }
  void Forward() override;
  const float* Logits(int first, int count) override;
  int32_t* last_tokens() override { return space_.last_tokens->as<int32_t>(); }
  const ModelConfig& config() const override { return config_; }

 private:
  // Where the queries of the step are.
  struct Queries {
    void* data;      // [tokens, heads, qk_head_dim] act
    int64_t stride;  // between tokens
  };

  void Attention(size_t layer);
  Queries Project(const AttentionWeights& w, const RmsNormParams& norm);
  MlaInputParams CacheInput(const AttentionWeights& w, const Queries& q, void* cache);
  void AttendDecode(const AttentionWeights& w, const Queries& q, const MlaInputParams& input);
  MlaPrefillParams PrefillOf(size_t layer, const Queries& q, const void* cache);
  void FeedForward(const LayerWeights& layer);
  void Moe(const MoeWeights& w);
  void MoeOverWorld(const MoeWeights& w);
  // Experts of `count` tokens from `first` on, to the front of expert_ids and expert_weights.
  RouteParams RouteTo(const MoeWeights& w, int first, int count);
  // The op that adds delta to the residual and makes `normed` of it; the caller runs it.
  RmsNormParams AddAndNorm(const DeviceBuffer& weight);
  // data: [tokens, dim], summed over the ranks of the group; so may be rows behind them.
  void SumOverGroup(void* data, DType dtype);
  // Final norm of the rows that logits are wanted of.
  const void* LogitInputs(int first, int count);

  const ModelConfig config_;
  const Layout layout_;
  Backend* const backend_;
  const CommGroup comm_;
  const ModelOptions options_;
  const ModelWeights weights_;
  const int heads_;         // of this rank
  const DType cache_dtype_;
  const int64_t layer_cache_bytes_;
  const float softmax_scale_;
  Workspace space_;
  StepInputs inputs_;
  std::unique_ptr<DeviceBuffer> cache_;  // [layers, kv_blocks * kBlockSize, latent_dim]
  ExpandedPrompt expanded_;
  // One of them with D > 1.
  ExpertExchange experts_;
  FixedExchange fixed_experts_;

  // The step in progress.
  int tokens_ = 0;
  // Of Forward() alone.
  void* residual_ = nullptr;  // [tokens, dim] float
  void* spare_ = nullptr;     // where the next sum goes, so that many blocks may read the last one
  bool has_delta_ = false;    // space_.delta waits to be added to the residual
  std::vector<uint8_t> served_;          // [tokens] with D > 1: whether this rank of the group sends it
  std::vector<Range> vocab_pieces_;      // [tensor_parallel] rows of the head
  std::vector<int64_t> piece_bytes_;     // [tensor_parallel]
};

}  // namespace hadal
