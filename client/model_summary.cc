#include "client/model_summary.h"

#include <map>
#include <string_view>
#include <utility>

namespace hadal {
namespace {

// The name with every all-digit component replaced by '*'.
std::string PatternOf(std::string_view name) {
  std::string out;
  while (!name.empty()) {
    const size_t dot = name.find('.');
    const std::string_view part = name.substr(0, dot);
    const bool number = part.find_first_not_of("0123456789") == std::string_view::npos;
    out += number ? "*" : std::string(part);
    if (dot == std::string_view::npos) break;
    out += '.';
    name.remove_prefix(dot + 1);
  }
  return out;
}

std::string KindOf(std::string_view pattern) {
  static constexpr std::pair<std::string_view, const char*> kKinds[] = {
      {"embed_tokens", "embedding"},
      {"lm_head", "head"},
      {"self_attn", "attention"},
      {"norm", "norms"},
      {".shared_experts.", "shared experts"},
      {".experts.", "routed experts"},
      {".mlp.gate.", "router"},
      {".mlp.", "dense MLP"}};
  for (const auto& [part, kind] : kKinds) {
    if (pattern.find(part) != std::string_view::npos) return kind;
  }
  return "other";
}

int64_t Elements(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

}  // namespace

std::vector<TensorGroup> GroupTensors(const ModelConfig& config, const Checkpoint* checkpoint) {
  std::vector<TensorGroup> groups;
  std::map<std::pair<std::string, DType>, size_t> index;
  for (ExpectedTensor& tensor : ExpectedTensors(config)) {
    DType dtype = tensor.dtypes.front();
    if (checkpoint != nullptr) {
      const Checkpoint::Entry* entry = checkpoint->Find(tensor.name);
      if (entry != nullptr && entry->info.dtype) dtype = *entry->info.dtype;
    }
    std::string pattern = PatternOf(tensor.name);
    const auto [at, added] = index.try_emplace({pattern, dtype}, groups.size());
    if (added) {
      std::string kind = KindOf(pattern);
      groups.push_back({std::move(pattern), std::move(kind), std::move(tensor), dtype, 0});
    }
    ++groups[at->second].count;
  }
  return groups;
}

RankShare ShareOf(const ModelConfig& config, const TensorGroup& group, const Layout& layout) {
  ExpectedTensor tensor = group.first;
  RankShare share{.count = group.count};
  if (tensor.split == Split::kExpert) {
    const Range own = SplitRange(config.n_routed_experts, layout.world(), layout.rank);
    tensor.expert = own.begin;
    share.count = group.count / config.n_routed_experts * own.size();
  }
  const TensorSlice slice = SliceForRank(config, tensor, layout);
  if (slice.rows.size() == 0 || slice.columns.size() == 0) return {};
  share.shape = {slice.rows.size()};
  if (tensor.shape.size() == 2) share.shape.push_back(slice.columns.size());
  share.bytes = share.count * Elements(share.shape) * DTypeSize(group.dtype);
  return share;
}

ParameterCounts CountParameters(const ModelConfig& config, const std::vector<TensorGroup>& groups) {
  ParameterCounts counts;
  for (const TensorGroup& group : groups) {
    if (!group.first.scaled_shape.empty()) continue;
    const int64_t n = group.count * Elements(group.first.shape);
    counts.total += n;
    counts.per_token += group.first.split == Split::kExpert
                            ? n / config.n_routed_experts * config.n_activated_experts
                            : n;
  }
  return counts;
}

int64_t KvBytesPerToken(const ModelConfig& config) {
  const DType dtype = config.dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
  return config.latent_dim() * config.n_layers * DTypeSize(dtype);
}

}  // namespace hadal
