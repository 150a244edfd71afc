#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/layout.h"
#include "common/model_config.h"
#include "kernels/backend.h"
#include "worker/comm/communicator.h"
#include "worker/model/expert_placement.h"
#include "worker/model/weights.h"

namespace hadal {

// The routed experts of one layer, for tokens that are already routed. Two ways to the same sum:
// RunLocal when every rank has all tokens and adds its own experts' part, RunExchange when tokens
// travel to the ranks that own their experts and come back. Buffers are kept between calls. One thread.
class ExpertExchange {
 public:
  // Rows that one rank sends, and receives, when `tokens` tokens a group choose experts evenly. More
  // come when they do not; the buffers then grow.
  static int64_t EvenRows(const ModelConfig& config, const Layout& layout, int64_t tokens);
  // Of `rows` rows, in the buffers of RunExchange.
  static int64_t BufferBytes(const ModelConfig& config, DType activation, int64_t rows) {
    return 3 * rows * config.dim * DTypeSize(activation);
  }

  // Sized for `exchange_rows` rows: 0 when only RunLocal is used.
  ExpertExchange(const ModelConfig& config, Backend* backend, std::shared_ptr<Communicator> world,
                 int64_t exchange_rows);

  // A step's routed tokens.
  struct Tokens {
    const void* x = nullptr;           // [count, dim] act
    const int32_t* ids = nullptr;      // [count, top_k]
    const float* weights = nullptr;    // [count, top_k]
    int count = 0;
    void* out = nullptr;               // [count, dim] act
    bool accumulate = false;           // add to out, or overwrite it
  };

  // out (+)= the weighted outputs of this rank's experts alone; row_out: [count * top_k, dim] act.
  void RunLocal(const MoeWeights& weights, const Tokens& tokens, void* row_out);

  // For tokens t with served[t]: out (+)= the weighted outputs of all chosen experts; for the others
  // out (+)= 0. Every rank of the world calls it, also with no tokens. Throws CommError.
  void RunExchange(const MoeWeights& weights, const Tokens& tokens, const uint8_t* served);

 private:
  void Dispatch(const Tokens& tokens, const uint8_t* served);
  void ExchangeCounts();
  void RunArrivals(const MoeWeights& weights);
  void RunExperts(const MoeWeights& weights, const void* x, void* row_out);
  // Sorts the rows (expert_, source_) by local expert, stably, into offsets_ and row_token_;
  // position_[i] is where row i went.
  void SortByExpert();
  // out[i] = rows[index[i]].
  void Gather(const void* rows, int64_t row_count, const std::vector<int32_t>& index, void* out);
  void* Grow(std::unique_ptr<DeviceBuffer>* buffer, int64_t rows);

  const int dim_;
  const int top_k_;
  const int64_t width_;
  const int64_t row_bytes_;
  Backend* const backend_;
  const std::shared_ptr<Communicator> world_;
  const ExpertPlacement placement_;

  std::vector<int32_t> expert_;      // [rows] local expert of each row
  std::vector<int32_t> source_;      // [rows] row of x
  std::vector<int32_t> offsets_;     // [local experts + 1]
  std::vector<int32_t> row_token_;   // [rows] sorted
  std::vector<int32_t> position_;    // [rows]
  std::vector<int32_t> next_row_;    // [local experts]
  std::vector<int32_t> row_of_;      // [tokens, top_k] row of the outputs, -1: not here

  std::vector<int32_t> send_token_;  // [sent rows] token, by destination rank
  std::vector<int32_t> send_expert_; // [sent rows] expert index at its owner
  std::vector<int64_t> send_rows_;   // [world]
  std::vector<int64_t> recv_rows_;   // [world]
  std::vector<int64_t> next_send_;   // [world]
  std::vector<int64_t> send_bytes_;  // [world]
  std::vector<int64_t> recv_bytes_;  // [world]
  std::unique_ptr<DeviceBuffer> send_;      // [sent rows, dim] act; the outputs come back into it
  std::unique_ptr<DeviceBuffer> arrived_;   // [received rows, dim] act
  std::unique_ptr<DeviceBuffer> computed_;  // [received rows, dim] act, sorted by expert
};

}  // namespace hadal
