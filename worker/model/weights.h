#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "common/layout.h"
#include "common/model_config.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "kernels/backend.h"
#include "worker/model/expert_placement.h"

namespace hadal {

using WeightPtr = std::unique_ptr<PackedWeight>;
using BufferPtr = std::unique_ptr<DeviceBuffer>;

// Of one rank: `heads` are its own heads, `width` its piece of the MLP.
struct MlpWeights {
  WeightPtr w13;      // [2 * width, dim]: gate rows, then up rows
  WeightPtr w2;       // [dim, width]
  int64_t width = 0;  // 0: this layer has no such MLP
};

struct AttentionWeights {
  WeightPtr in;       // [q_in + latent_dim, dim]: plain: q over kv_a, q_in = heads * qk_head_dim;
                      // q_lora: q_a over kv_a, q_in = q_lora_rank
  WeightPtr q;        // [heads * qk_head_dim, q_lora_rank], q_lora only
  BufferPtr q_norm;   // [q_lora_rank] float, q_lora only
  BufferPtr kv_norm;  // [kv_lora_rank] float
  WeightPtr uk;       // [heads] of [qk_nope_head_dim, kv_lora_rank]: prefill
  WeightPtr uk_t;     // [heads] of [kv_lora_rank, qk_nope_head_dim]: decode
  WeightPtr uv;       // [heads] of [v_head_dim, kv_lora_rank]
  WeightPtr o;        // [dim, heads * v_head_dim]
};

struct MoeWeights {
  BufferPtr gate;     // [n_routed_experts, dim] float
  BufferPtr bias;     // [n_routed_experts] float, or null
  WeightPtr w13;      // [own experts] of [2 * moe_inter_dim, dim]
  WeightPtr w2;       // [own experts] of [dim, moe_inter_dim]
  MlpWeights shared;
};

struct LayerWeights {
  BufferPtr attn_norm;  // [dim] float
  BufferPtr ffn_norm;   // [dim] float
  AttentionWeights attention;
  bool is_moe = false;
  MlpWeights dense;     // when not is_moe
  MoeWeights moe;       // when is_moe
};

struct ModelWeights {
  Range vocab;          // this rank's rows of embedding and head
  BufferPtr embedding;  // [vocab.size(), dim] of embedding_dtype
  DType embedding_dtype = DType::kBF16;
  std::vector<LayerWeights> layers;
  BufferPtr final_norm; // [dim] float
  WeightPtr head;       // [vocab.size(), dim]
  int64_t bytes = 0;    // of everything above
};

// Reads this rank's slices; `shared`: that of the shared experts' width. `progress` may be null.
StatusOr<ModelWeights> LoadWeights(const ModelConfig& config, const Layout& layout,
                                   const Range& shared, const Checkpoint& checkpoint,
                                   Backend* backend,
                                   const std::function<void(int64_t, int64_t)>& progress);

// ModelWeights::bytes of what LoadWeights would load.
int64_t PlanWeightBytes(const ModelConfig& config, const Layout& layout, const Range& shared,
                        const Backend& backend);

}  // namespace hadal
