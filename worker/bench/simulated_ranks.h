#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "common/layout.h"
#include "common/model_config.h"
#include "common/status.h"
#include "kernels/backend.h"
#include "worker/comm/loopback_communicator.h"
#include "worker/model/model.h"

namespace hadal {

// The layout that --simulate-layout and --simulate-rank ask for. INVALID_ARGUMENT names the flag and
// what to write instead.
StatusOr<Layout> ParseSimulatedLayout(const std::string& text, int rank, const ModelConfig& config);

// Stands in for the other ranks of a layout of which one is run alone. Collectives are loopbacks; with
// D > 1 the other ranks' tokens are as many as this one's and have its activations, but choose experts
// of their own, drawn evenly: as many of this rank's experts have tokens as in the whole layout.
class SimulatedRanks {
 public:
  // `backend` outlives this. `options` are those of the model.
  SimulatedRanks(const ModelConfig& config, const Layout& layout, const ModelOptions& options,
                 Backend* backend);

  CommGroup comm() const { return HostCommGroup(world_, tensor_); }

  // For the steps from now on, in which each group has `tokens` tokens and `padded` with padding.
  void Choose(int tokens, int padded);

 private:
  const ModelConfig config_;
  const Layout layout_;
  Backend* const backend_;
  const std::shared_ptr<LoopbackCommunicator> world_;
  const std::shared_ptr<LoopbackCommunicator> tensor_;
  std::unique_ptr<DeviceBuffer> chosen_;  // [kDraws, world, tokens of a rank, top_k]; null: D = 1
  std::pair<int, int> chosen_for_;        // what Choose() was called with
};

}  // namespace hadal
