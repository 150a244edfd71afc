#include "server/text/token_table.h"

namespace hadal {
namespace {

constexpr int64_t kMaxTokens = 2'000'000;

}  // namespace

Status CheckTokenId(int64_t id, std::string_view field) {
  if (id >= 0 && id < kMaxTokens) return OkStatus();
  return InvalidArgument("{}: {} is not a token id; ids are 0 to {}", field, id, kMaxTokens - 1);
}

TokenTable::TokenTable(const std::vector<Entry>& entries) {
  offsets_.reserve(entries.size() + 1);
  offsets_.push_back(0);
  special_.reserve(entries.size());
  for (const Entry& entry : entries) {
    bytes_ += entry.bytes;
    offsets_.push_back(bytes_.size());
    special_.push_back(entry.special);
  }
}

}  // namespace hadal
