#include "worker/bench/simulated_ranks.h"

#include <algorithm>
#include <charconv>

#include "worker/bench/drawn_experts.h"
#include "worker/model/fixed_exchange.h"
#include "worker/model/step_inputs.h"

namespace hadal {
namespace {

// Layers take turns with so many draws, so that no single one decides.
constexpr int kDraws = 16;

// The whole of `text` as a positive number; 0: it is none.
int ParseCount(std::string_view text) {
  int count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  return error == std::errc() && end == text.data() + text.size() ? std::max(count, 0) : 0;
}

LoopbackCommunicator::Copy CopyWith(Backend* backend) {
  return [backend](const void* from, int64_t from_stride, void* to, int64_t to_stride, int rows,
                   int64_t bytes) {
    backend->CopyRows({.from = from, .from_stride = from_stride, .to = to, .to_stride = to_stride,
                       .rows = rows, .bytes = bytes});
  };
}

}  // namespace

StatusOr<Layout> ParseSimulatedLayout(const std::string& text, int rank, const ModelConfig& config) {
  const size_t comma = std::min(text.find(','), text.size());
  const Layout layout{ParseCount(std::string_view(text).substr(0, comma)),
                      ParseCount(std::string_view(text).substr(std::min(comma + 1, text.size()))), rank};
  if (layout.tensor_parallel == 0 || layout.data_parallel == 0) {
    return InvalidArgument("--simulate-layout \"{}\": write T,D, as in 8,1: T ranks that share a "
                           "sequence's heads, and D groups of them with sequences of their own", text);
  }
  if (rank >= layout.world()) {
    return InvalidArgument("--simulate-rank {}: {} x {} ranks are numbered 0 to {}", rank,
                           layout.tensor_parallel, layout.data_parallel, layout.world() - 1);
  }
  if (const Status valid = ValidateLayout(config, layout); !valid.ok()) {
    return InvalidArgument("--simulate-layout: {}", valid.message());
  }
  const bool moe = config.n_dense_layers < config.n_layers;
  if (layout.data_parallel > 1 && moe && !MostRanksMeetAToken(config, layout)) {
    return InvalidArgument(
        "--simulate-layout {}: among {} ranks each token goes to those alone that have its experts, which "
        "one rank cannot know of the others; write a D of 1, or a T and D of at most {} ranks together",
        text, layout.world(), 2 * config.n_activated_experts);
  }
  return layout;
}

SimulatedRanks::SimulatedRanks(const ModelConfig& config, const Layout& layout,
                               const ModelOptions& options, Backend* backend)
    : config_(config),
      layout_(layout),
      backend_(backend),
      world_(std::make_shared<LoopbackCommunicator>(layout.rank, layout.world(), CopyWith(backend))),
      tensor_(std::make_shared<LoopbackCommunicator>(layout.tp_rank(), layout.tensor_parallel,
                                                     CopyWith(backend))) {
  const int64_t rows = int64_t{StepInputs::MaxSliceTokens(layout, options)} * layout.world();
  if (rows > 0) chosen_ = backend->Allocate(kDraws * rows * config.n_activated_experts * 4);
}

void SimulatedRanks::Choose(int tokens, int padded) {
  if (chosen_ == nullptr || chosen_for_ == std::pair(tokens, padded)) return;
  chosen_for_ = {tokens, padded};
  const int slice = (padded + layout_.tensor_parallel - 1) / layout_.tensor_parallel;
  const int64_t of_rank = slice * config_.n_activated_experts;
  std::mt19937 rng(1);
  std::vector<int32_t> chosen;
  LoopbackCommunicator::Others others{FixedExchange::kGatheredIds, of_rank * 4, {}};
  for (int draw = 0; draw < kDraws; ++draw) {
    others.draws.push_back(chosen_->as<int32_t>() + chosen.size());
    for (int rank = 0; rank < layout_.world(); ++rank) {
      // The last ranks of a group have fewer tokens, or none.
      const int own = std::clamp(tokens - rank % layout_.tensor_parallel * slice, 0, slice);
      const std::vector<int32_t> ids = DrawExperts(config_, own, &rng);
      chosen.insert(chosen.end(), ids.begin(), ids.end());
      chosen.resize((draw * layout_.world() + rank + 1) * of_rank, -1);
    }
  }
  backend_->CopyToDevice(chosen_->data, chosen.data(), static_cast<int64_t>(chosen.size()) * 4);
  world_->SetOthers(std::move(others));
}

}  // namespace hadal
