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

// The routed experts of one layer when tokens travel (D > 1): a token goes once to every rank that
// owns one of its experts, with the list of them, and the weighted sum of their outputs comes back.
// What goes where is decided on the host, from ids that are brought there. Buffers are kept between
// calls. One thread.
class ExpertExchange {
 public:
  // Rows that one rank sends, and receives, when `tokens` tokens a group choose experts evenly. More
  // come when they do not; the buffers then grow.
  static int64_t EvenRows(const ModelConfig& config, const Layout& layout, int64_t tokens);
  // Of `rows` rows, in all buffers.
  static int64_t BufferBytes(const ModelConfig& config, DType activation, int64_t rows) {
    return 3 * rows * config.dim * DTypeSize(activation);
  }

  // Sized for `rows` rows; 0 when there is nothing to exchange.
  ExpertExchange(const ModelConfig& config, Backend* backend, const CommGroup& comm, int64_t rows);

  // A step's routed tokens; backend memory.
  struct Tokens {
    const void* x = nullptr;           // [count, dim] act
    const int32_t* ids = nullptr;      // [count, top_k]
    const float* weights = nullptr;    // [count, top_k]
    const int32_t* local_index = nullptr;  // [experts] as in MoeParams
    const uint8_t* served = nullptr;   // host; [count] whether this rank sends the token
    int count = 0;
    void* out = nullptr;               // [count, dim] act
  };

  // out = this rank's part of the shared MLP, and for served tokens the weighted outputs of all
  // chosen experts. Every rank of the world calls it, also with no tokens. Throws CommError.
  void Run(const MoeWeights& weights, const Tokens& tokens);

 private:
  // The experts of a token that one rank owns.
  struct Choice {
    std::vector<int32_t> ids;    // [rows, top_k] expert, -1 where another rank owns it
    std::vector<float> weights;  // [rows, top_k]
  };

  void ListSends(const Tokens& tokens);
  void ExchangeCounts();
  void ExchangeChoices();
  void RunArrivals(const MoeWeights& weights, const int32_t* local_index);
  void* Grow(std::unique_ptr<DeviceBuffer>* buffer, int64_t bytes);
  // Brings an array of the host to `buffer`.
  template <typename T>
  const T* ToBackend(const std::vector<T>& values, std::unique_ptr<DeviceBuffer>* buffer);
  // Bytes of `rows` rows of `row_bytes` for every rank.
  static void ToBytes(const std::vector<int64_t>& rows, int64_t row_bytes,
                      std::vector<int64_t>* bytes);

  const int64_t dim_;
  const int top_k_;
  const int experts_;
  const int64_t width_;
  const int64_t row_bytes_;
  Backend* const backend_;
  const std::shared_ptr<HostCommunicator> world_;
  const std::shared_ptr<Communicator> act_world_;
  const ExpertPlacement placement_;
  const int fan_out_;                // ranks that a token can go to, at most

  std::vector<int32_t> ids_;         // [tokens, top_k]
  std::vector<float> weights_;       // [tokens, top_k]
  std::vector<int32_t> send_token_;  // [sent rows] token, by destination rank
  std::vector<int32_t> row_of_;      // [tokens, fan_out] sent row, ranks ascending, -1
  Choice sent_;
  Choice received_;
  std::vector<int64_t> send_rows_;   // [world]
  std::vector<int64_t> recv_rows_;   // [world]
  std::vector<int64_t> send_bytes_;  // [world]
  std::vector<int64_t> recv_bytes_;  // [world]
  std::unique_ptr<DeviceBuffer> send_;      // [sent rows, dim] act; the outputs come back into it
  std::unique_ptr<DeviceBuffer> arrived_;   // [received rows, dim] act
  std::unique_ptr<DeviceBuffer> computed_;  // [received rows, dim] act
  std::unique_ptr<DeviceBuffer> index_buffer_;   // of what ToBackend() brings
  std::unique_ptr<DeviceBuffer> ids_buffer_;
  std::unique_ptr<DeviceBuffer> weight_buffer_;
};

}  // namespace hadal
