#pragma once

#include <cstdint>
#include <memory>

#include "common/layout.h"
#include "common/model_config.h"
#include "kernels/backend.h"
#include "worker/comm/communicator.h"
#include "worker/model/model.h"
#include "worker/model/weights.h"

namespace hadal {

// The experts of one layer when every token travels to every rank of the world (D > 1): each rank
// computes what its routed experts and its piece of the shared ones add to all tokens, and sums over
// the ranks return to each its own. Sizes depend on the number of tokens alone and nothing is decided
// on the host, so such a layer can be replayed. Moves world / fan-out times the bytes of an
// ExpertExchange. One thread.
class FixedExchange {
 public:
  // Of its buffers.
  static int64_t Bytes(const ModelConfig& config, const Layout& layout, DType activation,
                       const ModelOptions& options);

  // Which array of an AllGatherEach() the chosen experts are.
  static constexpr size_t kGatheredIds = 1;

  // Of no use, and without buffers, unless options.fixed_exchange is set.
  FixedExchange(const ModelConfig& config, const Layout& layout, Backend* backend,
                const CommGroup& comm, const ModelOptions& options);

  // This rank's tokens; backend memory.
  struct Tokens {
    const void* x = nullptr;               // [count, dim] act
    const int32_t* ids = nullptr;          // [count, top_k]; -1: no expert
    const float* weights = nullptr;        // [count, top_k]
    const int32_t* local_index = nullptr;  // [experts] as in MoeParams
    int count = 0;                         // the same on every rank of the world
    void* out = nullptr;                   // [count, dim] act
  };

  // out = the weighted outputs of all chosen experts and the shared ones. Every rank of the world calls
  // it, with its SharedWidth() of the shared experts. Throws CommError.
  void Run(const MoeWeights& weights, const Tokens& tokens);

 private:
  // Rows of all ranks in the largest step.
  static int64_t MaxRows(const Layout& layout, const ModelOptions& options);

  const int64_t dim_;
  const int top_k_;
  const int experts_;
  const int64_t width_;
  Backend* const backend_;
  const std::shared_ptr<Communicator> world_;
  std::unique_ptr<DeviceBuffer> x_;         // [MaxRows, dim] act
  std::unique_ptr<DeviceBuffer> ids_;       // [MaxRows, top_k] int32
  std::unique_ptr<DeviceBuffer> weights_;   // [MaxRows, top_k] float
  std::unique_ptr<DeviceBuffer> partial_;   // [MaxRows, dim] act: what this rank adds
};

// Whether D groups have experts to share and a token goes to at least half of the ranks anyway.
bool MostRanksMeetAToken(const ModelConfig& config, const Layout& layout);

// That, on a backend that gains by replaying.
bool FixedExchangePays(const ModelConfig& config, const Layout& layout, const Backend& backend);

}  // namespace hadal
