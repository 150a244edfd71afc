#pragma once

#include <memory>
#include <vector>

#include "worker/model/expert_exchange.h"
#include "worker/model/model.h"
#include "worker/model/weights.h"
#include "worker/model/workspace.h"

namespace hadal {

// The forward pass of one rank. Residual stream, norms and the router are whole on every rank of a
// D group; heads, MLPs and the vocabulary are split, so each block ends with a sum over the group.
class Transformer final : public Model {
 public:
  Transformer(const ModelConfig& config, const Layout& layout, Backend* backend, CommGroup comm,
              const ModelOptions& options, ModelWeights weights);

  void Forward(const Batch& batch) override;
  void Logits(int first, int count, float* out) override;
  const ModelConfig& config() const override { return config_; }

 private:
  void StartStep(const Batch& batch);
  void Attention(const LayerWeights& layer, void* cache);
  void Project(const AttentionWeights& w);
  void Attend(const AttentionWeights& w, const void* cache);
  void FeedForward(const LayerWeights& layer);
  void DenseMlp(const MlpWeights& w, void* out);
  void Moe(const MoeWeights& w);
  void Route(const MoeWeights& w);
  // residual += delta_, then normed = norm(residual).
  void AddAndNorm(const DeviceBuffer& weight);
  void SumOverGroup(void* data, int64_t count);

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
  std::unique_ptr<DeviceBuffer> cache_;  // [layers, kv_blocks * kBlockSize, latent_dim]
  ExpertExchange experts_;

  // The step in progress.
  int tokens_ = 0;
  int decode_tokens_ = 0;   // they come first
  bool has_delta_ = false;  // space_.delta waits to be added to the residual
  std::vector<AttentionRow> decode_rows_;
  std::vector<AttentionRow> prefill_rows_;
  std::vector<int64_t> cache_rows_;      // [tokens]
  std::vector<int32_t> logit_tokens_;
  std::vector<uint8_t> served_;          // [tokens] with D > 1: whether this rank of the group sends it
  std::vector<int32_t> expert_ids_;      // [tokens, top_k]
  std::vector<float> expert_weights_;    // [tokens, top_k]
  std::vector<float> own_logits_;        // [max_step_logits, own vocabulary]
  std::vector<float> all_logits_;        // the ranks' pieces, one after the other
  std::vector<Range> vocab_pieces_;      // [tensor_parallel] rows of the head
  std::vector<int64_t> piece_bytes_;     // [tensor_parallel]
};

}  // namespace hadal
