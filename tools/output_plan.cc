#include "tools/output_plan.h"

#include <nlohmann/json.hpp>

#include "common/file.h"

namespace hadal {

constexpr uint64_t kMaxTextBytes = 64 << 20;

std::string IndexText(const std::vector<OutputFile>& shards) {
  nlohmann::ordered_json index;
  std::map<std::string, std::string> weight_map;
  uint64_t total = 0;
  for (const OutputFile& shard : shards) {
    for (const TensorInfo& tensor : shard.tensors) weight_map.emplace(tensor.name, shard.name);
    total += shard.bytes - shard.prefix.size();
  }
  index["metadata"]["total_size"] = total;
  index["weight_map"] = weight_map;
  return index.dump(2) + "\n";
}

StatusOr<std::string> ReadSourceText(const std::string& source_dir, const std::string& name) {
  const std::string path = source_dir + "/" + name;
  const auto json = ReadJsonFile(path, kMaxTextBytes);
  if (json.ok()) return ReadFile(path, kMaxTextBytes);
  if (json.status().code() == StatusCode::kNotFound) return json.status();
  return Status(StatusCode::kFailedPrecondition, json.status().message());
}

}  // namespace hadal
