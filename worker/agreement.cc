#include "worker/agreement.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <sstream>
#include <vector>

namespace hadal {

namespace {

std::vector<std::string> GatherTexts(const std::string& own, HostCommunicator* world) {
  const auto bytes = static_cast<int64_t>(own.size());
  std::vector<int64_t> sizes(world->size());
  world->AllGather(&bytes, sizes.data(), sizeof(bytes));
  std::string all(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}), '\0');
  world->AllGatherV(own.data(), all.data(), sizes);
  std::vector<std::string> texts;
  size_t at = 0;
  for (const int64_t size : sizes) {
    texts.push_back(all.substr(at, size));
    at += size;
  }
  return texts;
}

}  // namespace

Status Agree(const Status& own, HostCommunicator* world) {
  const int32_t failed = own.ok() ? 0 : 1;
  std::vector<int32_t> all(world->size());
  world->AllGather(&failed, all.data(), sizeof(failed));
  if (!own.ok()) return own;
  const auto first = std::find(all.begin(), all.end(), 1);
  if (first == all.end()) return OkStatus();
  return FailedPrecondition("rank {} could not start", first - all.begin());
}

Status AgreeOnFacts(const StartFacts& own, HostCommunicator* world) {
  std::string text;
  for (const auto& [name, value] : own) text += value + '\n';
  const std::vector<std::string> all = GatherTexts(text, world);
  std::vector<std::string> differences;
  for (int rank = 1; rank < world->size(); ++rank) {
    std::istringstream first(all[0]), other(all[rank]);
    for (const auto& [name, value] : own) {
      std::string expected, found;
      std::getline(first, expected);
      std::getline(other, found);
      if (found == expected) continue;
      differences.push_back(
          fmt::format("rank {} has {} {}, rank 0 has {}", rank, name, found, expected));
    }
  }
  if (differences.empty()) return OkStatus();
  return FailedPrecondition("all ranks need the same model and options: {}",
                            fmt::join(differences, "; "));
}

}  // namespace hadal
