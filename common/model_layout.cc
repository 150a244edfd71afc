#include <algorithm>
#include <string>
#include <vector>

#include "common/model_config.h"

namespace hadal {
namespace {

bool HasExperts(const ModelConfig& config) { return config.n_dense_layers < config.n_layers; }

// Whole heads on each rank of a group, whole experts on each rank.
bool Divides(const ModelConfig& config, int64_t tensor_parallel, int64_t world) {
  return config.n_heads % tensor_parallel == 0 &&
         (!HasExperts(config) || config.n_routed_experts % world == 0);
}

std::string LayoutsOf(const ModelConfig& config, int64_t world) {
  std::string out;
  for (int64_t t = std::min(world, config.n_heads); t >= 1; --t) {
    if (world % t != 0 || !Divides(config, t, world)) continue;
    out += fmt::format("{}{} x {}", out.empty() ? "" : ", ", t, world / t);
  }
  return out;
}

// Numbers of ranks for which some layout is legal: T = 1 always divides the heads.
std::string LegalWorlds(const ModelConfig& config) {
  const int64_t limit = HasExperts(config) ? config.n_routed_experts : config.n_heads;
  std::vector<int64_t> worlds;
  for (int64_t world = 1; world <= limit; ++world) {
    if (limit % world == 0) worlds.push_back(world);
  }
  return fmt::format("{}", fmt::join(worlds, ", "));
}

}  // namespace

Status ValidateLayout(const ModelConfig& config, const Layout& layout) {
  if (layout.tensor_parallel < 1 || layout.data_parallel < 1) {
    return InvalidArgument("layout {} x {}: tensor-parallel and data-parallel must be at least 1",
                           layout.tensor_parallel, layout.data_parallel);
  }
  const int64_t world = int64_t{layout.tensor_parallel} * layout.data_parallel;
  if (layout.rank < 0 || layout.rank >= world) {
    return InvalidArgument("rank {} is outside the {} ranks of layout {} x {}", layout.rank, world,
                           layout.tensor_parallel, layout.data_parallel);
  }
  if (Divides(config, layout.tensor_parallel, world)) return OkStatus();
  std::string reason;
  if (config.n_heads % layout.tensor_parallel != 0) {
    reason = fmt::format("tensor-parallel {} does not divide {} heads", layout.tensor_parallel,
                         config.n_heads);
  }
  if (HasExperts(config) && config.n_routed_experts % world != 0) {
    reason += fmt::format("{}{} ranks do not divide {} routed experts",
                          reason.empty() ? "" : " and ", world, config.n_routed_experts);
  }
  const std::string layouts = LayoutsOf(config, world);
  if (!layouts.empty()) {
    return InvalidArgument(
        "layout {} x {}: {}; legal layouts (tensor-parallel x data-parallel) of "
        "{} ranks: {}",
        layout.tensor_parallel, layout.data_parallel, reason, world, layouts);
  }
  return InvalidArgument(
      "layout {} x {}: {}; no layout of {} ranks is legal; legal numbers of "
      "ranks: {}",
      layout.tensor_parallel, layout.data_parallel, reason, world, LegalWorlds(config));
}

}  // namespace hadal
